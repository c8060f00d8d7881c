//! What Python says of characters, where Rust's own methods say something else.

/// `str.isspace`: Unicode's space and four separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Where `str.splitlines` ends a line.
pub(super) fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// `str.isprintable` of one character.
pub(super) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Rust escapes what is not printable; after another character, marks that join it are printable.
    c.is_alphanumeric() || format!("a{c}").escape_debug().nth(1) == Some(c)
}

/// `str.title`'s first letter of a word: upper case, of one letter.
pub(super) fn push_title(c: char, out: &mut String) {
    // The letters that have a form of their own for this.
    for (letters, title) in [("Ǆǅǆ", 'ǅ'), ("Ǉǈǉ", 'ǈ'), ("Ǌǋǌ", 'ǋ'), ("Ǳǲǳ", 'ǲ')] {
        if letters.contains(c) {
            out.push(title);
            return;
        }
    }
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    out.extend(upper.flat_map(char::to_lowercase));
}

/// Whether case means something for it.
pub(super) fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}
