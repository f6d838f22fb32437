//! A text that one task sets and others read now and then.

use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub(super) struct Text(Mutex<Option<String>>);

impl Text {
    pub(super) fn set(&self, text: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
