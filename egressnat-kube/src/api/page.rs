//! A page of a list, slim from the moment it is read.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::slim::slim;
use crate::kind::Kind;

/// What a list says besides the objects.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    pub(super) resource_version: String,
    #[serde(default)]
    pub(super) r#continue: String,
}

/// A part of a list, or all of it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) metadata: PageMetadata,
    /// The documents in their slim form.
    pub(super) items: Vec<Value>,
}

impl Page {
    /// Reads a page of objects of one kind. Of what is not used, no more than one object's share is in memory at once.
    ///
    /// # Errors
    ///
    /// The text is no list.
    pub(super) fn read(kind: Kind, text: &str) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        PageOf(kind).deserialize(&mut deserializer)
    }
}

struct PageOf(Kind);

impl<'de> DeserializeSeed<'de> for PageOf {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageOf {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.0.plural())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        let mut metadata = None;
        let mut items = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => metadata = Some(map.next_value()?),
                "items" => items = map.next_value_seed(ItemsOf(self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let metadata = metadata.ok_or_else(|| serde::de::Error::missing_field("metadata"))?;
        Ok(Page { metadata, items })
    }
}

struct ItemsOf(Kind);

impl<'de> DeserializeSeed<'de> for ItemsOf {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Value>, D::Error> {
        // Null where there are none.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsOf {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.plural())
    }

    fn visit_unit<E>(self) -> Result<Vec<Value>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<Value>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(slim(self.0, item));
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_is_read_in_slim_form_whatever_stands_around_it() {
        let text = json!({
            "kind": "NodeList", "apiVersion": "v1",
            "items": [{"metadata": {"name": "worker1", "managedFields": [{}]}, "status": {"images": [{}]}}],
            "metadata": {"resourceVersion": "10", "continue": "next", "remainingItemCount": 3},
        });
        let page = Page::read(Kind::Node, &text.to_string()).unwrap();
        assert_eq!(page.metadata.resource_version, "10");
        assert_eq!(page.metadata.r#continue, "next");
        let worker1 = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker1"}});
        assert_eq!(page.items, [worker1]);
    }

    #[test]
    fn a_page_may_be_empty_and_must_be_a_list() {
        let read = |text: &str| Page::read(Kind::Node, text);
        for items in ["[]", "null"] {
            let text = format!(r#"{{"metadata": {{"resourceVersion": "1"}}, "items": {items}}}"#);
            assert_eq!(read(&text).unwrap().items, Vec::<Value>::new());
        }
        assert!(read(r#"{"metadata": {"resourceVersion": "1"}}"#).is_ok());
        for text in [r#"{"items": []}"#, "[]", r#"{"metadata": {}}"#, ""] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
