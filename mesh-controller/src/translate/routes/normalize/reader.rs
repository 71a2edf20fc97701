//! Reading a rule: where one is, and what was found wrong.

use std::fmt;

use culvert_objects::FieldError;
use culvert_objects::types::Unknown;

/// What stops a rule from being honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub reason: FaultReason,
    pub error: FieldError,
}

/// The reason of the condition that tells of a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    UnsupportedValue,
    IncompatibleFilters,
}

impl FaultReason {
    pub fn as_str(self) -> &'static str {
        match self {
            FaultReason::UnsupportedValue => "UnsupportedValue",
            FaultReason::IncompatibleFilters => "IncompatibleFilters",
        }
    }
}

impl Fault {
    pub fn unsupported(field: impl fmt::Display, message: impl Into<String>) -> Self {
        let error = FieldError::new(field.to_string(), message);
        Self { reason: FaultReason::UnsupportedValue, error }
    }

    /// Whether it is something that another version may do, rather than something that is wrong: the message says which.
    pub fn is_not_done(&self) -> bool {
        self.error.message.contains("this version of Culvert")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// The path of a field, written out only when there is something to say about it.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    Root(&'a str),
    Field(&'a At<'a>, &'a str),
    Item(&'a At<'a>, usize),
}

impl<'a> At<'a> {
    pub fn field(&'a self, name: &'a str) -> At<'a> {
        At::Field(self, name)
    }

    pub fn item(&'a self, index: usize) -> At<'a> {
        At::Item(self, index)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Root(name) => f.write_str(name),
            At::Field(parent, name) => write!(f, "{parent}.{name}"),
            At::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Collects every fault of one rule.
#[derive(Debug, Default)]
pub struct Reader {
    pub faults: Vec<Fault>,
}

impl Reader {
    /// A value that this version does not know or cannot use.
    pub fn unsupported(&mut self, at: At<'_>, message: impl Into<String>) {
        self.faults.push(Fault::unsupported(at, message));
    }

    /// Fields that no type of ours has.
    pub fn unknown(&mut self, at: At<'_>, rest: &Unknown) {
        for field in rest.keys() {
            self.unsupported(at.field(field), UNKNOWN_FIELD);
        }
    }
}

/// What is said of a field that Culvert does not know.
pub const UNKNOWN_FIELD: &str = "this version of Culvert does not do this field";
