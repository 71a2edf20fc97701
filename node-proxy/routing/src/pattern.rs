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

/// An expression between `\A` and `\z`.
pub(crate) struct Pattern {
    source: Box<str>,
    first_segments: Box<str>,
    last_segment: Option<Box<str>>,
    search: Search,
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
    #[error("its compiled form is larger than 1 MiB: use smaller repetitions")]
    TooLarge,
}

impl Pattern {
    pub(crate) fn compile(source: &str) -> Result<Pattern, PatternError> {
        let config = syntax::Config::new().nest_limit(NESTING_LIMIT).utf8(false);
        // Parsed alone: text put around it could be broken out of by an unbalanced parenthesis or a comment.
        let hir = syntax::parse_with(source, &config)
            .map_err(|error| PatternError::Syntax(reason(&error.to_string())))?;
        let first_segments = first_segments(&hir).into();
        let last_segment = last_segment(&hir).map(Into::into);
        let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        let search = match table(&whole) {
            Some(table) => Search::Table(Box::new(table)),
            None => Search::Engine(Box::new(engine(&whole)?)),
        };
        Ok(Pattern { source: source.into(), first_segments, last_segment, search })
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
        let input = Input::new(value).anchored(Anchored::Yes).earliest(true);
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

fn table(whole: &Hir) -> Option<dense::DFA<Vec<u32>>> {
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
