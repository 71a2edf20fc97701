//! Regular expressions that match a whole value: time linear in the value, memory bounded when they are compiled.

use std::fmt;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, meta};
use regex_syntax::hir::{Hir, HirKind, Look};

/// Of the compiled form of one expression.
const SIZE_LIMIT: usize = 1 << 20;
/// Up to here an expression becomes a table that is searched without any state of its own.
const TABLE_LIMIT: usize = 32 << 10;
const NESTING_LIMIT: u32 = 100;

/// An expression as if between `\A` and `\z`.
pub(crate) struct Pattern {
    source: Box<str>,
    /// What every match begins with; what is searched for comes after it.
    beginning: Box<[u8]>,
    first_segments: Box<str>,
    last_segment: Option<Box<str>>,
    search: Search,
}

/// What an expression is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Only ASCII, as all paths are: classes such as `\w` need not know the rest of Unicode, which makes them small.
    Ascii,
    Any,
}

enum Search {
    Table(Box<dense::DFA<Vec<u32>>>),
    /// Too large for a table, or with Unicode word boundaries: keeps scratch space per thread.
    Engine(Box<meta::Regex>),
}

/// Why an expression is refused: what the parser says, or that it is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("not a regular expression (RE2 syntax, no look-around, no back-references): {0}")]
    Syntax(String),
    #[error(
        "its compiled form is larger than 1 MiB: use smaller repetitions, or [0-9A-Za-z_] instead of \\w"
    )]
    TooLarge,
}

impl Pattern {
    pub(crate) fn compile(source: &str, values: Values) -> Result<Pattern, PatternError> {
        let hir = parse(source, values)?;
        let first_segments = first_segments(&hir).into();
        let last_segment = last_segment(&hir).map(Into::into);
        let (beginning, rest) = split_beginning(hir);
        let whole = Hir::concat(vec![rest, Hir::look(Look::End)]);
        let search = match table(&whole) {
            Some(table) => Search::Table(Box::new(table)),
            None => Search::Engine(Box::new(engine(&whole)?)),
        };
        Ok(Pattern { source: source.into(), beginning, first_segments, last_segment, search })
    }

    /// The whole segments that every path that matches starts with, for an index.
    pub(crate) fn first_segments(&self) -> &str {
        &self.first_segments
    }

    /// The segment that every path that matches ends with, if the expression has one, for an index.
    pub(crate) fn last_segment(&self) -> Option<&str> {
        self.last_segment.as_deref()
    }

    pub(crate) fn is_match(&self, value: &[u8]) -> bool {
        if !value.starts_with(&self.beginning) {
            return false;
        }
        // Not a part of the value: what comes before is seen by word boundaries.
        let input = Input::new(value).range(self.beginning.len()..).anchored(Anchored::Yes).earliest(true);
        match &self.search {
            // Fails only at bytes that the table was told to give up at, and it was told none.
            Search::Table(table) => matches!(table.try_search_fwd(&input), Ok(Some(_))),
            Search::Engine(engine) => engine.is_match(input),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.source).finish()
    }
}

pub(crate) fn parse(source: &str, values: Values) -> Result<Hir, PatternError> {
    // Parsed alone: text put around it could be broken out of by an unbalanced parenthesis or a comment.
    let config = syntax::Config::new().nest_limit(NESTING_LIMIT).utf8(false);
    if values == Values::Ascii
        && let Ok(hir) = syntax::parse_with(source, &config.unicode(false))
    {
        return Ok(hir);
    }
    syntax::parse_with(source, &config).map_err(|error| PatternError::Syntax(reason(&error.to_string())))
}

pub(crate) fn table(whole: &Hir) -> Option<dense::DFA<Vec<u32>>> {
    let nfa = thompson::Config::new()
        .utf8(false)
        .which_captures(thompson::WhichCaptures::None)
        .nfa_size_limit(Some(SIZE_LIMIT));
    let nfa = thompson::Compiler::new().configure(nfa).build_from_hir(whole).ok()?;
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .dfa_size_limit(Some(TABLE_LIMIT))
        .determinize_size_limit(Some(8 * TABLE_LIMIT));
    dense::Builder::new().configure(config).build_from_nfa(&nfa).ok()
}

fn engine(whole: &Hir) -> Result<meta::Regex, PatternError> {
    let config = meta::Config::new().utf8_empty(false).nfa_size_limit(Some(SIZE_LIMIT));
    meta::Builder::new().configure(config).build_from_hir(whole).map_err(|_| PatternError::TooLarge)
}

/// The parser's message is a drawing of several lines; the last one says what is wrong.
fn reason(message: &str) -> String {
    let last = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or(message);
    last.trim().trim_start_matches("error: ").to_owned()
}

/// Takes a literal at the beginning off: thousands of expressions that begin differently need no tables for that.
fn split_beginning(hir: Hir) -> (Box<[u8]>, Hir) {
    match hir.kind() {
        HirKind::Concat(parts) => match parts.split_first().map(|(first, rest)| (first.kind(), rest)) {
            Some((HirKind::Literal(literal), rest)) => (literal.0.clone(), Hir::concat(rest.to_vec())),
            _ => (Box::default(), hir),
        },
        _ => (Box::default(), hir),
    }
}

fn first_segments(hir: &Hir) -> String {
    let mut literal = Vec::new();
    read_literal(hir, &mut literal, Direction::Forward);
    let whole = literal.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    literal.truncate(whole);
    // Between slashes, so between characters, unless the expression asks for bytes that no path has.
    String::from_utf8(literal).unwrap_or_default()
}

fn last_segment(hir: &Hir) -> Option<String> {
    let mut literal = Vec::new();
    read_literal(hir, &mut literal, Direction::Backward);
    literal.truncate(literal.iter().position(|byte| *byte == b'/')?);
    literal.reverse();
    String::from_utf8(literal).ok()
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    /// From the end, with the bytes in reverse.
    Backward,
}

/// Appends what every match of `hir` must begin (end) with; whether that is all that it matches.
fn read_literal(hir: &Hir, literal: &mut Vec<u8>, direction: Direction) -> bool {
    match (hir.kind(), direction) {
        (HirKind::Empty | HirKind::Look(_), _) => true,
        (HirKind::Literal(text), Direction::Forward) => {
            literal.extend(text.0.iter());
            true
        }
        (HirKind::Literal(text), Direction::Backward) => {
            literal.extend(text.0.iter().rev());
            true
        }
        (HirKind::Capture(capture), _) => read_literal(&capture.sub, literal, direction),
        (HirKind::Concat(parts), Direction::Forward) => {
            parts.iter().all(|part| read_literal(part, literal, direction))
        }
        (HirKind::Concat(parts), Direction::Backward) => {
            parts.iter().rev().all(|part| read_literal(part, literal, direction))
        }
        (HirKind::Class(_) | HirKind::Repetition(_) | HirKind::Alternation(_), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_segments_at_both_ends_are_known() {
        let table = [
            ("/api/v[0-9]+/users", "/api", Some("users")),
            ("/api/", "/api", Some("")),
            ("/api", "", Some("api")),
            ("/a/b|/a/c", "", None),
            ("/a/(b/c)/d.*", "/a/b/c", None),
            ("^/a/b$", "/a", Some("b")),
            ("(?i)/a/b", "", None),
            ("/a/(?:b)?/c/x", "/a", Some("x")),
            (".*/c-d", "", Some("c-d")),
            (".*c-d", "", None),
            ("", "", None),
            ("a", "", None),
            ("/a(/b/){2}", "", None),
            (r"/a\b/b", "/a", Some("b")),
            ("/ü/.*/ü", "/ü", Some("ü")),
            (r"/(?-u:\xff)/a/.*", "", None),
            (r".*/(?-u:\xff)", "", None),
        ];
        for (source, first, last) in table {
            let pattern = Pattern::compile(source, Values::Any).unwrap();
            assert_eq!((pattern.first_segments(), pattern.last_segment()), (first, last), "{source}");
        }
    }

    #[test]
    fn values_are_matched_as_a_whole() {
        let table = [
            ("/fo|/foo", "/foo", true),
            ("/foo|/fo", "/fo", true),
            ("oo", "foo", false),
            ("fo", "foo", false),
            ("(?m)^a$", "a\nb", false),
            ("(?x) a # comment", "a", true),
            ("a*", "", true),
            (r"abc\b/", "abc/", true),
            (r"abc\b", "abc", true),
            (r"abc\Bd", "abcd", true),
            (r"abc\bd", "abcd", false),
            (r"abc\b.", "abc-", true),
            (r"abc\b.*", "abcd", false),
            (r"ab^c", "abc", false),
            ("ab", "abab", false),
            (r"\w{3}\b", "abc", true),
            (r"\w{3}\b", "abcd", false),
            (r"\pL{20}", &"ä".repeat(20), true),
            (r"\pL{20}", &"ä".repeat(21), false),
        ];
        for (source, value, wanted) in table {
            assert_eq!(
                Pattern::compile(source, Values::Any).unwrap().is_match(value.as_bytes()),
                wanted,
                "{source} on {value}"
            );
        }
    }

    #[test]
    fn small_expressions_are_tables_and_large_ones_are_not() {
        let is_table =
            |source| matches!(Pattern::compile(source, Values::Any).unwrap().search, Search::Table(_));
        assert!(is_table("/api/v[0-9]+/(users|carts)/.*"));
        assert!(is_table("(?i)abc|def"));
        assert!(!is_table(r"\pL{20}"));
        assert!(!is_table(r"a\b"));
    }

    #[test]
    fn expressions_for_paths_are_small() {
        for source in [r"/users/\w{1,64}", r"/\d+/\w+\b.*", r"(?i)/[^/]+/\S+"] {
            let pattern = Pattern::compile(source, Values::Ascii).unwrap();
            assert!(matches!(pattern.search, Search::Table(_)), "{source}");
        }
        // Not to be had for ASCII alone.
        assert!(Pattern::compile(r"/\pL+/[ä]", Values::Ascii).is_ok());
        assert_eq!(
            Pattern::compile("(", Values::Ascii).unwrap_err(),
            Pattern::compile("(", Values::Any).unwrap_err()
        );
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let error = |source| Pattern::compile(source, Values::Any).unwrap_err().to_string();
        assert!(error("a(").ends_with(": unclosed group"), "{}", error("a("));
        assert!(!error("(?x)\na(").contains('\n'));
    }
}
