//! What can be said of an expression without a request: values that it matches, and whether it leaves any of a set out.
//! Decided on the table that requests are matched with, and on products of such tables; expressions without one are left
//! undecided, and so are products that are too large.

use std::collections::{HashSet, VecDeque};
use std::sync::LazyLock;

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
/// States of a product that are looked at.
const MOST: usize = 1 << 14;

/// What every path in normal form matches, and little more: it is the root, or has segments that are neither empty nor dots, and
/// perhaps a slash at the end; or it is the `*` of OPTIONS.
static PATHS: LazyLock<Option<Table>> = LazyLock::new(|| {
    let any = "[-A-Za-z0-9._~!$&'()*+,;=:@%]";
    let but_dot = "[-A-Za-z0-9_~!$&'()*+,;=:@%]";
    let segment = format!(r"(?:{but_dot}{any}*|\.{but_dot}{any}*|\.\.{any}+)");
    Table::new(&format!(r"/|(?:/{segment})+/?|\*"), Values::Ascii)
});
/// A segment of such a path.
static NAMES: LazyLock<Option<Table>> =
    LazyLock::new(|| Table::new("[-A-Za-z0-9._~!$&'()*+,;=:@%]+", Values::Ascii));

/// Where the values of an expression come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Paths in normal form.
    Paths,
    /// Services and methods of gRPC: one segment of a path in normal form.
    Names,
    /// Values of headers and of query parameters.
    Values,
}

impl Of {
    fn values(self) -> Values {
        match self {
            Of::Paths | Of::Names => Values::Ascii,
            Of::Values => Values::Any,
        }
    }

    /// What all of them match, where that is known.
    fn all(self) -> Option<&'static Table> {
        match self {
            Of::Paths => PATHS.as_ref(),
            Of::Names => NAMES.as_ref(),
            Of::Values => None,
        }
    }
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
    let Some(table) = Table::new(expression, of.values()) else { return Examples::Undecided };
    if of.all().is_some_and(|all| covers_nothing_of(&table, all) == Some(true)) {
        return Examples::None;
    }
    let alphabet = alphabet(of);
    let mut found = Vec::new();
    let mut seen = HashSet::from([table.start]);
    let mut waiting = VecDeque::from([(table.start, String::new())]);
    while let Some((state, text)) = waiting.pop_front() {
        if table.ends(state) && is_value(&text, of) {
            found.push(text.clone());
            if found.len() == EXAMPLES {
                break;
            }
        }
        if text.len() == LONGEST {
            continue;
        }
        let bytes = if text.is_empty() && of == Of::Paths { b"/" } else { &alphabet[..] };
        for &byte in bytes {
            let next = table.dfa.next_state(state, byte);
            if !table.dfa.is_dead_state(next) && seen.insert(next) {
                let mut text = text.clone();
                text.push(char::from(byte));
                waiting.push_back((next, text));
            }
        }
    }
    // Some bytes never end a value where others do, so that nothing was found proves nothing.
    if found.is_empty() { Examples::Undecided } else { Examples::Some(found) }
}

/// Whether an expression matches every path that starts with a prefix, by path element; None where that is not decided.
pub fn covers_prefix(expression: &str, prefix: &str) -> Option<bool> {
    covers(expression, &below(prefix), Of::Paths)
}

/// The expression of every path that starts with a prefix, by path element.
pub fn below(prefix: &str) -> String {
    format!("{}(?:/.*)?", exactly(prefix.trim_end_matches('/')))
}

/// The expression of one value.
pub fn exactly(value: &str) -> String {
    regex_syntax::escape(value)
}

/// Whether an expression matches everything that another one does, of what there can be; None where that is not decided.
pub fn covers(wide: &str, narrow: &str, of: Of) -> Option<bool> {
    let (wide, narrow) = (Table::new(wide, of.values())?, Table::new(narrow, of.values())?);
    match of.all() {
        Some(all) => is_empty([&narrow, all, &wide], |[narrow, all, wide]| narrow && all && !wide),
        None => is_empty([&narrow, &wide], |[narrow, wide]| narrow && !wide),
    }
}

/// Whether an expression matches the whole of a value; false for one that does not compile.
pub fn matches(expression: &str, value: &str, of: Of) -> bool {
    Pattern::compile(expression, of.values()).is_ok_and(|pattern| pattern.is_match(value.as_bytes()))
}

fn covers_nothing_of(table: &Table, all: &Table) -> Option<bool> {
    is_empty([table, all], |[table, all]| table && all)
}

/// Whether there is no value for which the tables answer so; None where there are too many states to tell. What the first table
/// has no more values for is not followed.
fn is_empty<const N: usize>(tables: [&Table; N], wanted: impl Fn([bool; N]) -> bool) -> Option<bool> {
    let start = tables.map(|table| table.start);
    let bytes = representatives(tables);
    let mut seen = HashSet::from([start]);
    let mut waiting = vec![start];
    while let Some(states) = waiting.pop() {
        let ends: [bool; N] = std::array::from_fn(|index| tables[index].ends(states[index]));
        if wanted(ends) {
            return Some(false);
        }
        for &byte in &bytes {
            let next: [StateID; N] =
                std::array::from_fn(|index| tables[index].dfa.next_state(states[index], byte));
            if !tables[0].dfa.is_dead_state(next[0]) && seen.insert(next) {
                waiting.push(next);
            }
        }
        if seen.len() > MOST {
            return None;
        }
    }
    Some(true)
}

/// One byte of all those that none of the tables tells apart.
fn representatives<const N: usize>(tables: [&Table; N]) -> Vec<u8> {
    let mut seen = HashSet::new();
    let is_first = |byte: &u8| seen.insert(tables.map(|table| table.dfa.byte_classes().get(*byte)));
    (0..=u8::MAX).filter(is_first).collect()
}

/// What values are made of for people: letters first.
fn alphabet(of: Of) -> Vec<u8> {
    let is_of = |byte: &u8| match of {
        Of::Paths => is_path_character(*byte) || matches!(byte, b'/' | b'%'),
        Of::Names => is_path_character(*byte) || *byte == b'%',
        Of::Values => true,
    };
    let mut alphabet: Vec<u8> = (0x21..0x7f).filter(is_of).collect();
    alphabet.sort_by_key(|byte| (!byte.is_ascii_lowercase(), !byte.is_ascii_alphanumeric(), *byte));
    alphabet
}

fn is_value(text: &str, of: Of) -> bool {
    let is_normal = |path: &str| crate::path::normalize(path).is_ok_and(|normal| normal == path);
    match of {
        Of::Paths => !text.is_empty() && is_normal(text),
        Of::Names => !text.is_empty() && is_normal(&format!("/{text}")),
        Of::Values => true,
    }
}

struct Table {
    dfa: Box<dense::DFA<Vec<u32>>>,
    start: StateID,
}

impl Table {
    fn new(expression: &str, values: Values) -> Option<Self> {
        let whole = Hir::concat(vec![parse(expression, values).ok()?, Hir::look(Look::End)]);
        let dfa = Box::new(table(&whole)?);
        let start = dfa.start_state_forward(&Input::new("").anchored(Anchored::Yes)).ok()?;
        Some(Self { dfa, start })
    }

    fn ends(&self, state: StateID) -> bool {
        self.dfa.is_match_state(self.dfa.next_eoi_state(state))
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
        // No query, no space, no empty segment, none of dots.
        for expression in [r"/api\?v=1", "/a b", "/a//b", r"/x/\.\./y", r"/x/\.", "/[?#]+", "(?:/a|/b)//+c"] {
            assert_eq!(examples(expression, Of::Paths), Examples::None, "{expression}");
        }
        for expression in ["/a/", "/a/?/b", r"/\.a/\.\.\.", "/a%20b", "//?a", ".*//.*|/b", r"\*"] {
            assert_ne!(examples(expression, Of::Paths), Examples::None, "{expression}");
        }
        assert_eq!(examples("a/b", Of::Names), Examples::None);
        assert_eq!(examples("a[.]b", Of::Names), Examples::Some(vec!["a.b".to_owned()]));
        assert_eq!(examples("a", Of::Values), Examples::Some(vec!["a".to_owned()]));
    }

    #[test]
    fn what_an_expression_covers_of_another() {
        let cases = [
            ("/api/.*", "/api/v1/.*", Of::Paths, Some(true)),
            ("/api/v1/.*", "/api/.*", Of::Paths, Some(false)),
            ("(/b|/c)(/.*)?", "/b", Of::Paths, Some(true)),
            ("/(a|b)", "/a", Of::Paths, Some(true)),
            ("/[a-c]+", "/(a|b|cab)", Of::Paths, Some(true)),
            ("/[a-c]+", "/(a|d)", Of::Paths, Some(false)),
            // Of paths in normal form alone.
            ("/[^/]+", "/.+", Of::Paths, Some(false)),
            ("/[^/?]*", "/[^/]*", Of::Paths, Some(true)),
            ("/a/[^/]+", "/a/+b", Of::Paths, Some(true)),
            (".*", "foo|bar", Of::Values, Some(true)),
            ("foo|bar|baz", "ba[rz]", Of::Values, Some(true)),
            ("ba[rz]", "foo|bar", Of::Values, Some(false)),
            ("[^/]*", "a/?b", Of::Values, Some(false)),
            (r"[\w.]+", "a[.]b", Of::Names, Some(true)),
            ("(", "a", Of::Values, None),
            // Without a table.
            (r"\pL{20}", r"\pL{20}", Of::Values, None),
        ];
        for (wide, narrow, of, expected) in cases {
            assert_eq!(covers(wide, narrow, of), expected, "{wide} {narrow}");
        }
        assert_eq!(covers(&exactly("/a.b"), "/a[.]b", Of::Paths), Some(true));
        assert_eq!(covers(&exactly("/a.b"), "/a.b", Of::Paths), Some(false));
        assert_eq!(covers(&below("/a/"), "/a(/b)?", Of::Paths), Some(true));
        assert_eq!(covers(&below("/a"), "/ab?", Of::Paths), Some(false));
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
