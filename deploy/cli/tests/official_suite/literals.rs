//! Reads the literals of Go source: the tables of requests and answers that the suite's tests are made of.

/// A token of Go; comments and white space are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Text(String),
    /// A name with its qualifiers, a keyword or a number.
    Word(String),
    Sign(char),
}

/// What an expression is, as far as the tables need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Word(String),
    /// `{A: 1, B: 2}`
    Fields(Vec<(String, Value)>),
    /// `{1, 2}`
    List(Vec<Value>),
    /// Something that is computed.
    Computed,
}

impl Value {
    pub fn field(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Fields(fields) => fields.iter().find(|(of, _)| of == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub fn fields(&self) -> &[(String, Value)] {
        if let Value::Fields(fields) = self { fields } else { &[] }
    }

    pub fn items(&self) -> &[Value] {
        if let Value::List(items) = self { items } else { &[] }
    }
}

pub fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, rest)| rest);
        } else if first == '"' || first == '`' {
            let (text, after) = text(&rest[1..], first);
            tokens.push(Token::Text(text));
            rest = after;
        } else if first.is_alphanumeric() || first == '_' {
            let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            tokens.extend((!first.is_whitespace()).then_some(Token::Sign(first)));
            rest = &rest[first.len_utf8()..];
        }
    }
    tokens
}

/// The text up to the quote that ends it, and what follows.
fn text(source: &str, quote: char) -> (String, &str) {
    let mut text = String::new();
    let mut chars = source.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' if quote == '"' => text.extend(chars.next().map(|(_, escaped)| escaped)),
            char if char == quote => return (text, &source[at + 1..]),
            char => text.push(char),
        }
    }
    (text, "")
}

/// Reads the expression at `*at` and moves behind it.
pub fn value(tokens: &[Token], at: &mut usize) -> Value {
    while tokens.get(*at) == Some(&Token::Sign('&')) {
        *at += 1;
    }
    let mut value = operand(tokens, at);
    while tokens.get(*at) == Some(&Token::Sign('+')) {
        *at += 1;
        operand(tokens, at);
        value = Value::Computed;
    }
    value
}

fn operand(tokens: &[Token], at: &mut usize) -> Value {
    // The type of a list or a map.
    let begins = *at;
    while tokens.get(*at) == Some(&Token::Sign('['))
        || matches!((tokens.get(*at), tokens.get(*at + 1)), (Some(Token::Word(map)), Some(Token::Sign('['))) if map == "map")
    {
        *at += tokens[*at..].iter().position(|token| *token == Token::Sign(']')).unwrap_or(0) + 1;
    }
    let is_typed = *at > begins;
    let Some(token) = tokens.get(*at) else { return Value::Computed };
    *at += usize::from(*token != Token::Sign('{'));
    match (token, tokens.get(*at)) {
        (Token::Text(text), _) => Value::Text(text.clone()),
        (_, Some(Token::Sign('{'))) => body(tokens, at),
        // A type that a value is converted to.
        (Token::Word(_), Some(Token::Sign('('))) => arguments(tokens, at),
        (Token::Word(word), _) if !is_typed => Value::Word(word.clone()),
        _ => Value::Computed,
    }
}

/// Of several arguments nothing is known.
fn arguments(tokens: &[Token], at: &mut usize) -> Value {
    *at += 1;
    let mut items = Vec::new();
    while tokens.get(*at).is_some_and(|token| *token != Token::Sign(')')) {
        items.push(value(tokens, at));
        *at += usize::from(tokens.get(*at) == Some(&Token::Sign(',')));
    }
    *at += 1;
    match items.as_slice() {
        [only] => only.clone(),
        _ => Value::Computed,
    }
}

fn body(tokens: &[Token], at: &mut usize) -> Value {
    *at += 1;
    let (mut fields, mut items) = (Vec::new(), Vec::new());
    while tokens.get(*at).is_some_and(|token| *token != Token::Sign('}')) {
        let item = value(tokens, at);
        if tokens.get(*at) == Some(&Token::Sign(':')) {
            *at += 1;
            let (Value::Word(name) | Value::Text(name)) = item else { break };
            fields.push((name, value(tokens, at)));
        } else {
            items.push(item);
        }
        *at += usize::from(tokens.get(*at) == Some(&Token::Sign(',')));
    }
    *at += 1;
    if fields.is_empty() { Value::List(items) } else { Value::Fields(fields) }
}

#[test]
fn tables_are_read() {
    let source = r#"cases := []http.ExpectedResponse{{ // one
        Request: http.Request{Path: "/a\"b", Headers: map[string]string{"X": `y`}},
        Namespace: suite.NS, Codes: []int{200, 204},
    }, {Host: f(1, g(2)) + ":80", NS: string(ns)}}"#;
    let tokens = tokens(source);
    let mut at = 3;
    let table = value(&tokens, &mut at);
    assert_eq!(at, tokens.len());
    let [one, two] = table.items() else { panic!("{table:?}") };
    let request = one.field("Request").unwrap();
    assert_eq!(request.field("Path"), Some(&Value::Text("/a\"b".to_owned())));
    assert_eq!(request.field("Headers").unwrap().fields(), [("X".to_owned(), Value::Text("y".to_owned()))]);
    assert_eq!(one.field("Namespace"), Some(&Value::Word("suite.NS".to_owned())));
    assert_eq!(one.field("Codes").unwrap().items().len(), 2);
    assert_eq!(two.field("Host"), Some(&Value::Computed));
    assert_eq!(two.field("NS"), Some(&Value::Word("ns".to_owned())));
}
