use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

/// A string that is no Kubernetes object name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidName {
    value: String,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a valid object name: use at most 253 lower case letters, digits, '-' and '.', \
             with a letter or digit at both ends",
            self.value
        )
    }
}

impl core::error::Error for InvalidName {}

/// RFC 1123 subdomain, the rule of `metadata.name` (Kubernetes `IsDNS1123Subdomain`).
pub(crate) fn is_subdomain(value: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    value.len() <= 253
        && value.split('.').all(|label| {
            let bytes = label.as_bytes();
            match (bytes.first(), bytes.last()) {
                (Some(&first), Some(&last)) => {
                    is_alphanumeric(first)
                        && is_alphanumeric(last)
                        && bytes.iter().all(|&b| is_alphanumeric(b) || b == b'-')
                }
                _ => false,
            }
        })
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// Cheap to clone: clones share the text.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(value: &str) -> Result<Self, InvalidName> {
                if is_subdomain(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(InvalidName { value: value.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(value: String) -> Result<Self, InvalidName> {
                if is_subdomain(&value) { Ok(Self(value.into())) } else { Err(InvalidName { value }) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

names! {
    /// Name of a node.
    NodeName;
    /// Name of a namespace.
    NamespaceName;
    /// Name of an egress policy, which is cluster-scoped.
    PolicyName;
    /// Name of an object within its namespace.
    Name;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule_for_metadata_name() {
        for good in ["a", "worker1", "node-1.example.com", "0"] {
            assert_eq!(good.parse::<NodeName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(254);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a..b",
            ".a",
            "a_b",
            "a/b",
            long.as_str(),
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
        }
    }
}
