//! What the suite's tests ask and expect, from their source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::literals::{Token, Value, tokens, value};

/// One test of the suite.
#[derive(Debug, Default)]
pub struct Test {
    /// Below the suite's directory.
    pub manifests: Vec<String>,
    pub cases: Vec<Case>,
    /// Namespaces and names, in the order of the source.
    pub gateways: Vec<(String, String)>,
    client: Option<Client>,
    /// Texts that variables hold.
    variables: BTreeMap<String, String>,
    /// Lists of texts that variables hold.
    lists: Vec<String>,
    deletes: bool,
}

/// A request and what is expected of it.
#[derive(Clone, Debug)]
pub struct Case {
    pub written: Value,
    pub grpc: bool,
    /// Where it is sent; none for all Gateways of the test.
    pub gateway: Option<(String, String)>,
    pub client: Option<Client>,
    /// The test has deleted its ReferenceGrants by then.
    pub ungranted: bool,
    variables: BTreeMap<String, String>,
    /// By the beginning of the pods' names.
    pub shares: Vec<(String, f64)>,
}

/// A pod in the mesh.
#[derive(Clone, Debug)]
pub struct Client {
    pub namespace: String,
    pub deployment: String,
}

/// What names stand for.
pub struct Names(BTreeMap<String, String>);

impl Names {
    /// Every `NAME = "TEXT"` of the suite's own package.
    pub fn of(suite: &Path) -> Self {
        let mut names = BTreeMap::new();
        for file in sources(&suite.join("utils/suite")) {
            let tokens = tokens(&std::fs::read_to_string(file).unwrap());
            for window in tokens.windows(3) {
                if let [Token::Word(name), Token::Sign('='), Token::Text(text)] = window {
                    names.insert(name.clone(), text.clone());
                }
            }
        }
        Self(names)
    }

    fn text(&self, value: &Value, variables: &BTreeMap<String, String>) -> Option<String> {
        match value {
            Value::Text(text) => Some(text.clone()),
            Value::Word(word) => {
                let last = word.rsplit('.').next().unwrap();
                let known = variables.get(word).or_else(|| self.0.get(last));
                Some(known.cloned().unwrap_or_else(|| last.to_owned()))
            }
            _ => None,
        }
    }

    fn alone(&self, value: &Value) -> Option<String> {
        self.text(value, &BTreeMap::new())
    }
}

impl Case {
    /// A text below the fields named; None where there is none, or one that is computed.
    pub fn text(&self, names: &Names, path: &[&str]) -> Option<String> {
        names.text(self.at(path)?, &self.variables).filter(|text| !text.is_empty())
    }

    fn set(&mut self, path: &[&str], value: Value) {
        let mut at = &mut self.written;
        for field in path {
            let Value::Fields(fields) = at else { return };
            let Some((_, found)) = fields.iter_mut().find(|(name, _)| name == field) else { return };
            at = found;
        }
        *at = value;
    }

    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.written, |at, field| at.field(field))
    }

    pub fn pairs(&self, names: &Names, path: &[&str]) -> Vec<(String, String)> {
        let pairs = self.at(path).map(Value::fields).unwrap_or_default();
        let pair = |(name, value): &(String, Value)| {
            (name.clone(), names.text(value, &self.variables).unwrap_or_default())
        };
        pairs.iter().map(pair).collect()
    }

    pub fn list(&self, names: &Names, path: &[&str]) -> Vec<String> {
        let items = self.at(path).map(Value::items).unwrap_or_default();
        items.iter().filter_map(|item| names.text(item, &self.variables)).collect()
    }
}

pub fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|of| of == "go")).collect();
    files.sort();
    files
}

/// Every test of a file.
pub fn tests(source: &str, names: &Names) -> Vec<Test> {
    let tokens = tokens(source);
    let mut tests: Vec<Test> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Token::Word(word) = &tokens[at] else {
            at += 1;
            continue;
        };
        let follows = |signs: &str| {
            let mut rest = tokens[at + 1..].iter();
            signs.chars().all(|sign| rest.next() == Some(&Token::Sign(sign)))
        };
        if word.ends_with(".ConformanceTest") && follows("{") {
            tests.push(Test::default());
        }
        let assigned = [":=", "="].into_iter().find(|signs| follows(signs)).map(|signs| at + 1 + signs.len());
        let (word, before) = (word.clone(), at.checked_sub(1).map(|at| &tokens[at]));
        let mut next = at + 1;
        if let Some(test) = tests.last_mut() {
            match word.as_str() {
                "Manifests" if follows(":") => {
                    next = at + 2;
                    let files = value(&tokens, &mut next);
                    test.manifests.extend(files.items().iter().filter_map(|file| names.alone(file)));
                }
                "http.ExpectedResponse" | "grpc.ExpectedResponse" if follows("{") => {
                    next = at;
                    let written = value(&tokens, &mut next);
                    let is_table = before == Some(&Token::Sign(']'));
                    let rows = if is_table { written.items().to_vec() } else { vec![written] };
                    rows.into_iter().for_each(|row| test.case(row, word.starts_with("grpc")));
                }
                word if word.ends_with(".Delete") => test.deletes = true,
                "float64" if follows("{") => {
                    next = at;
                    let shares = value(&tokens, &mut next);
                    test.shares(&shares, names);
                }
                _ => {
                    if let Some(begins) = assigned {
                        next = begins;
                        test.assigned(&word, &tokens, begins, names);
                    }
                }
            }
        }
        at = next.max(at + 1);
    }
    tests
}

impl Test {
    fn case(&mut self, written: Value, grpc: bool) {
        let case = Case {
            written,
            grpc,
            gateway: self.gateways.last().cloned(),
            client: self.client.clone(),
            ungranted: self.deletes,
            variables: self.variables.clone(),
            shares: Vec::new(),
        };
        // A path that is put together is that of each of the texts before it.
        let is_computed = case.at(&["Request", "Path"]) == Some(&Value::Computed);
        let of = |text: &String| {
            let mut case = case.clone();
            case.set(&["Request", "Path"], Value::Text(format!("/{text}")));
            case
        };
        match is_computed {
            true => self.cases.extend(self.lists.iter().map(of)),
            false => self.cases.push(case),
        }
    }

    fn shares(&mut self, written: &Value, names: &Names) {
        let share = |(name, share): &(String, Value)| {
            let name = names.alone(&Value::Word(name.clone())).unwrap();
            let Value::Word(share) = share else { panic!("{share:?}") };
            (name, share.parse().unwrap())
        };
        let Some(case) = self.cases.last_mut() else { return };
        case.shares = written.fields().iter().map(share).collect();
    }

    /// What is known of the test's variables.
    fn assigned(&mut self, variable: &str, tokens: &[Token], begins: usize, names: &Names) {
        let mut at = begins;
        let arguments = || {
            let end = tokens[begins..].iter().position(|token| *token == Token::Sign(')')).unwrap_or(0);
            tokens[begins..begins + end].iter().filter_map(|token| match token {
                Token::Word(word) => names.alone(&Value::Word(word.clone())),
                _ => None,
            })
        };
        if variable.starts_with("gwNN") {
            let gateway = value(tokens, &mut at);
            let part = |name: &str| names.text(gateway.field(name)?, &self.variables);
            self.gateways.extend(part("Namespace").zip(part("Name")));
        } else if variable.ends_with("lient") && tokens[begins..].first().is_some_and(is_connect) {
            let arguments: Vec<String> = arguments().collect();
            let app = arguments.iter().find_map(|argument| argument.strip_prefix("MeshAppEcho")).unwrap();
            let namespace = arguments.iter().find(|argument| argument.starts_with("gateway-conformance"));
            self.client = Some(Client {
                namespace: namespace.map_or("gateway-conformance-mesh", |namespace| namespace).to_owned(),
                deployment: format!("echo-{}", app.to_ascii_lowercase()),
            });
        } else {
            let assigned = value(tokens, &mut at);
            let texts = assigned.items().iter().filter_map(|item| match item {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            });
            self.lists.extend(texts);
            if let Value::Text(_) | Value::Word(_) = assigned {
                self.variables.extend(names.alone(&assigned).map(|text| (variable.to_owned(), text)));
            }
        }
    }
}

fn is_connect(token: &Token) -> bool {
    matches!(token, Token::Word(word) if word.starts_with("echo.ConnectToApp"))
}
