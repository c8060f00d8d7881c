//! What host and devices call the same things by.

/// A vocabulary index at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Vocabulary index.
    pub id: u32,
    /// Position in its sequence, from 0.
    pub pos: u32,
}
