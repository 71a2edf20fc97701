//! What can be said of an expression without a request: values that it matches, and whether it leaves any of a set out.
//! Decided on the table that requests are matched with; expressions without one are left undecided.

use std::collections::{HashSet, VecDeque};

use regex_automata::dfa::{Automaton, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Hir, Look};

use crate::path::is_path_character;
use crate::pattern::{Pattern, Values, parse, table};

/// How many values are looked for.
const EXAMPLES: usize = 6;
/// Of a value, in bytes; an expression whose shortest value is longer is left undecided.
const LONGEST: usize = 64;

/// Where the values of an expression come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Paths in normal form.
    Paths,
    /// Values of headers and of query parameters.
    Values,
}

/// What an expression matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Examples {
    /// Nothing that there can be.
    None,
    /// The shortest first, at most a few; each ends in another way than the others.
    Some(Vec<String>),
    Undecided,
}

/// Values that an expression matches as a whole.
pub fn examples(expression: &str, of: Of) -> Examples {
    let Some(language) = Language::new(expression, of) else { return Examples::Undecided };
    let mut found = Vec::new();
    let mut seen = HashSet::from([language.start]);
    let mut waiting = VecDeque::from([(language.start, String::new())]);
    let mut is_cut = false;
    while let Some((state, text)) = waiting.pop_front() {
        if language.ends(state) && language.is_value(&text) {
            found.push(text.clone());
            if found.len() == EXAMPLES {
                break;
            }
        }
        if text.len() == LONGEST {
            is_cut = true;
            continue;
        }
        for &byte in language.bytes(text.is_empty()) {
            let next = language.table.next_state(state, byte);
            if !language.table.is_dead_state(next) && seen.insert(next) {
                let mut text = text.clone();
                text.push(char::from(byte));
                waiting.push_back((next, text));
            }
        }
    }
    match (found.is_empty(), is_cut) {
        (false, _) => Examples::Some(found),
        // Some bytes never end a value where others do, so that nothing was found proves nothing of what has them.
        (true, false) if of == Of::Paths && language.starts_outside() => Examples::None,
        (true, _) => Examples::Undecided,
    }
}

/// Whether an expression matches every path that starts with a prefix, by path element; None where that is not decided.
pub fn covers_prefix(expression: &str, prefix: &str) -> Option<bool> {
    let language = Language::new(expression, Of::Paths)?;
    let prefix = prefix.trim_end_matches('/');
    let at =
        |text: &str| text.bytes().fold(language.start, |state, byte| language.table.next_state(state, byte));
    if !prefix.is_empty() && !language.ends(at(prefix)) {
        return Some(false);
    }
    let first = language.table.next_state(at(prefix), b'/');
    let mut seen = HashSet::from([first]);
    let mut waiting = vec![first];
    while let Some(state) = waiting.pop() {
        if !language.ends(state) {
            return Some(false);
        }
        for &byte in language.bytes(false) {
            let next = language.table.next_state(state, byte);
            if seen.insert(next) {
                waiting.push(next);
            }
        }
    }
    Some(true)
}

/// Whether an expression matches the whole of a value; false for one that does not compile.
pub fn matches(expression: &str, value: &str, of: Of) -> bool {
    let values = if of == Of::Paths { Values::Ascii } else { Values::Any };
    Pattern::compile(expression, values).is_ok_and(|pattern| pattern.is_match(value.as_bytes()))
}

struct Language {
    table: Box<dense::DFA<Vec<u32>>>,
    start: StateID,
    of: Of,
    alphabet: Vec<u8>,
}

impl Language {
    fn new(expression: &str, of: Of) -> Option<Self> {
        let values = if of == Of::Paths { Values::Ascii } else { Values::Any };
        let whole = Hir::concat(vec![parse(expression, values).ok()?, Hir::look(Look::End)]);
        let table = Box::new(table(&whole)?);
        let start = table.start_state_forward(&Input::new("").anchored(Anchored::Yes)).ok()?;
        let alphabet = (0x21..0x7f).filter(|byte| match of {
            Of::Paths => is_path_character(*byte) || matches!(byte, b'/' | b'%'),
            Of::Values => true,
        });
        // Letters first: examples are for people, too.
        let mut alphabet: Vec<u8> = alphabet.collect();
        alphabet.sort_by_key(|byte| (!byte.is_ascii_lowercase(), !byte.is_ascii_alphanumeric(), *byte));
        Some(Self { table, start, of, alphabet })
    }

    fn bytes(&self, first: bool) -> &[u8] {
        if first && self.of == Of::Paths { b"/" } else { &self.alphabet }
    }

    fn ends(&self, state: StateID) -> bool {
        self.table.is_match_state(self.table.next_eoi_state(state))
    }

    fn is_value(&self, text: &str) -> bool {
        match self.of {
            Of::Paths => crate::path::normalize(text).is_ok_and(|path| path == text) && !text.is_empty(),
            Of::Values => true,
        }
    }

    /// Whether it matches nothing that starts with a slash.
    fn starts_outside(&self) -> bool {
        let mut seen = HashSet::new();
        let mut waiting = vec![self.table.next_state(self.start, b'/')];
        while let Some(state) = waiting.pop() {
            if self.ends(state) {
                return false;
            }
            for byte in 0..=u8::MAX {
                let next = self.table.next_state(state, byte);
                if seen.insert(next) {
                    waiting.push(next);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_values_of_the_expression() {
        for expression in ["/a.*", "/(a|b)", "/v[0-9]+/x", ".*", "/[^/]+/b", "^/a/b$"] {
            let Examples::Some(found) = examples(expression, Of::Paths) else { panic!("{expression}") };
            let whole = regex::Regex::new(&format!(r"\A(?:{expression})\z")).unwrap();
            assert!(found.iter().all(|text| whole.is_match(text) && text.starts_with('/')), "{found:?}");
        }
        assert_eq!(examples("api/.*", Of::Paths), Examples::None);
        assert_eq!(examples("", Of::Paths), Examples::None);
        assert_eq!(examples("a", Of::Values), Examples::Some(vec!["a".to_owned()]));
    }

    #[test]
    fn what_an_expression_covers() {
        let cases = [
            (".*", "/", Some(true)),
            ("/.*", "/", Some(true)),
            ("/a.*", "/a", Some(true)),
            ("/a/.*", "/a", Some(false)),
            ("/a(/.*)?", "/a", Some(true)),
            ("/a(/.*)?", "/a/b/", Some(true)),
            ("/a[a-z/]*", "/a", Some(false)),
            ("/b.*", "/a", Some(false)),
            ("(", "/", None),
        ];
        for (expression, prefix, covers) in cases {
            assert_eq!(covers_prefix(expression, prefix), covers, "{expression} {prefix}");
        }
    }
}
