use alloc::sync::Arc;

use crate::hash::{Map, Seed};
use crate::slab::Slab;

/// A text, as a number.
pub(super) type Symbol = u32;

/// Texts with a number each: kept once, however often they are used.
#[derive(Debug, Clone, Default)]
pub(super) struct Symbols {
    by_text: Map<Arc<str>, Symbol>,
    texts: Slab<Text>,
}

#[derive(Debug, Clone)]
struct Text {
    text: Arc<str>,
    users: u32,
}

impl Symbols {
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            by_text: Map::with_hasher(seed),
            texts: Slab::default(),
        }
    }

    /// The number of a text, used once more.
    pub(super) fn take(&mut self, text: &str) -> Symbol {
        if let Some(symbol) = self.by_text.get(text) {
            self.texts[*symbol].users += 1;
            return *symbol;
        }
        let text: Arc<str> = text.into();
        let symbol = self.texts.insert(Text {
            text: text.clone(),
            users: 1,
        });
        self.by_text.insert(text, symbol);
        symbol
    }

    /// The text is used once less.
    pub(super) fn give(&mut self, symbol: Symbol) {
        let text = &mut self.texts[symbol];
        text.users -= 1;
        if text.users == 0
            && let Some(gone) = self.texts.remove(symbol)
        {
            self.by_text.remove(&gone.text);
        }
    }

    /// How many texts are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }
}
