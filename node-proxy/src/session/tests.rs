//! What rules make of a client's requests over time, against a table of sessions that remembers instead of sealing.

use std::collections::BTreeSet;

use culvert_routing::CompiledRoute;
use culvert_routing::model::{Action, Match, Route, RouteKey, RouteKind, Rule, Timeouts};
use culvert_routing::session::{Carrier, CookieName, CookiePath, Lifetime, session_header};
use http::header::{COOKIE, SET_COOKIE};
use proptest::prelude::*;

use super::*;

const TIMEOUT: u64 = 300;
const RULES: usize = 3;

/// Rules that keep sessions under one name, each with two backends.
fn rules(carrier: &Carrier) -> Vec<Arc<CompiledRule>> {
    let backend = |name: &str| Backend {
        weight: 1,
        filters: Vec::new(),
        target: Target::Service { namespace: "shop".into(), name: name.into(), port: 80 },
    };
    let rule = |_| Rule {
        name: None,
        matches: vec![Match {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }],
        filters: Vec::new(),
        action: Action::Forward(vec![backend("one"), backend("two")]),
        timeouts: Timeouts::default(),
        retry: None,
        session: Some(SessionPersistence {
            carrier: carrier.clone(),
            absolute_timeout: Some(Duration::from_secs(TIMEOUT)),
        }),
    };
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "r".into() };
    let rules = (0..RULES).map(rule).collect();
    let route = Route { key, created: 0, hostnames: Vec::new(), rules };
    CompiledRoute::compile(route).unwrap().rules().to_vec()
}

fn carriers() -> [Carrier; 2] {
    let name = CookieName::parse("s").unwrap();
    let cookie = Carrier::Cookie { name, lifetime: Lifetime::Permanent, path: CookiePath::Unset };
    [cookie, Carrier::Header(session_header("x-s").unwrap())]
}

fn keys(ids: &[u32]) -> Arc<SessionKeys> {
    let secrets: Vec<[u8; 32]> = ids.iter().map(|id| [*id as u8; 32]).collect();
    Arc::new(SessionKeys::new(ids.iter().zip(&secrets).map(|(id, secret)| (*id, &secret[..]))).unwrap())
}

#[derive(Clone, Debug)]
enum Event {
    Ask {
        rule: usize,
    },
    Pass(u64),
    /// An endpoint comes or goes.
    Toggle(usize),
    /// Another key seals; the third goes.
    Rotate,
    /// The client changes a byte of what it carries.
    Forge(prop::sample::Index),
    /// It shows one rule's sessions to all of them.
    Confuse,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..RULES).prop_map(|rule| Event::Ask { rule }),
        2 => (0..TIMEOUT).prop_map(Event::Pass),
        2 => (0..4_usize).prop_map(Event::Toggle),
        1 => Just(Event::Rotate),
        1 => any::<prop::sample::Index>().prop_map(Event::Forge),
        1 => Just(Event::Confuse),
    ]
}

/// What the oracle remembers of a rule's session.
#[derive(Clone, Debug)]
struct Known {
    began: u64,
    endpoint: usize,
    key: u32,
}

/// A client, its mesh and the oracle.
struct World {
    rules: Vec<Arc<CompiledRule>>,
    carrier: Carrier,
    now: u64,
    endpoints: BTreeSet<usize>,
    /// The first seals.
    keys: Vec<u32>,
    /// What the client carries.
    carried: Option<String>,
    known: Vec<Option<Known>>,
    asked: usize,
}

impl World {
    fn ask(&mut self, rule: usize) {
        let mut headers = HeaderMap::new();
        if let Some(value) = &self.carried {
            let (name, value) = match &self.carrier {
                Carrier::Header(name) => (name.clone(), value.clone()),
                Carrier::Cookie { .. } => (COOKIE, format!("a=b; s={value}")),
            };
            headers.insert(name, value.parse().unwrap());
        }
        let keys = keys(&self.keys);
        let of = &self.rules[rule];
        let request = Request::read(Scope::Rule(of), of.session().unwrap(), &headers, &keys, self.now);
        let found = request.find(|session| {
            let index: usize = session.endpoint.strip_prefix("uid-").unwrap().parse().unwrap();
            self.endpoints.contains(&index).then_some(index)
        });
        let known = self.known[rule].clone().filter(|known| {
            let is_young = self.now - known.began < TIMEOUT;
            is_young && self.endpoints.contains(&known.endpoint) && self.keys.contains(&known.key)
        });
        assert_eq!(found.map(|(_, endpoint)| endpoint), known.as_ref().map(|known| known.endpoint));
        let chosen = self.endpoints.iter().nth(self.asked % self.endpoints.len().max(1));
        let Some(endpoint) = known.as_ref().map(|known| known.endpoint).or(chosen.copied()) else { return };
        self.asked += 1;
        let (matched, uid) = (PathMatch::Prefix("/".into()), format!("uid-{endpoint}"));
        let said = request.answer(&matched, found.map(|(index, _)| index), "shop/one:80".to_owned(), &uid);
        let is_told = known.as_ref().is_none_or(|known| known.key != self.keys[0]);
        assert_eq!(said.is_some(), is_told, "{known:?}");
        let began = known.map_or(self.now, |known| known.began);
        self.known[rule] = match said {
            Some((name, value)) => {
                self.take(&name, value.to_str().unwrap(), TIMEOUT - (self.now - began));
                Some(Known { began, endpoint, key: self.keys[0] })
            }
            None => self.known[rule].clone(),
        };
    }

    /// As a browser does.
    fn take(&mut self, name: &HeaderName, value: &str, left: u64) {
        self.carried = Some(match &self.carrier {
            Carrier::Header(_) => value.to_owned(),
            Carrier::Cookie { .. } => {
                assert_eq!(name, SET_COOKIE);
                let (pair, attributes) = value.split_once("; ").unwrap();
                assert_eq!(attributes, format!("Max-Age={left}; HttpOnly; SameSite=Strict"));
                pair.strip_prefix("s=").unwrap().to_owned()
            }
        });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Ask { rule } => self.ask(rule),
            Event::Pass(seconds) => self.now += seconds,
            Event::Toggle(endpoint) => {
                if !self.endpoints.remove(&endpoint) {
                    self.endpoints.insert(endpoint);
                }
            }
            Event::Rotate => {
                let next = self.keys.iter().max().unwrap() + 1;
                self.keys.insert(0, next);
                self.keys.truncate(2);
            }
            Event::Forge(place) => {
                let Some(carried) = self.carried.take().filter(|carried| !carried.is_empty()) else { return };
                let mut bytes = carried.into_bytes();
                let place = place.index(bytes.len());
                bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
                // Nobody knows whose it was: the client starts anew.
                self.known = vec![None; RULES];
                self.carried = String::from_utf8(bytes).ok().map(|forged| {
                    let cut = forged.find('.').unwrap_or(forged.len());
                    if place <= cut { forged[..cut].to_owned() } else { String::new() }
                });
            }
            Event::Confuse => {
                let first = self.carried.as_deref().and_then(|carried| carried.split('.').next());
                let Some(first) = first.map(str::to_owned) else { return };
                // The newest session stays that of its own rule, and opens none of another.
                let newest =
                    Session::open(&keys(&self.keys), &Scope::Rule(&self.rules[0]).text(), &first).is_some();
                self.carried = Some(format!("{first}.{first}"));
                for (rule, known) in self.known.iter_mut().enumerate() {
                    let own =
                        Session::open(&keys(&self.keys), &Scope::Rule(&self.rules[rule]).text(), &first)
                            .is_some();
                    if !own {
                        *known = None;
                    }
                    assert!(!(own && newest && rule != 0), "one token, two rules");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn sessions_are_those_of_a_table_that_remembers(
        events in prop::collection::vec(event(), 1..60),
        by in 0..2_usize,
    ) {
        let carrier = carriers()[by].clone();
        let mut world = World {
            rules: rules(&carrier),
            carrier,
            now: 1_800_000_000,
            endpoints: BTreeSet::from([0, 1, 2]),
            keys: vec![1],
            carried: None,
            known: vec![None; RULES],
            asked: 0,
        };
        for event in events {
            world.happen(event);
        }
    }

    #[test]
    fn nothing_that_a_client_makes_up_is_a_session(value in "[ -~]{0,300}") {
        for carrier in carriers() {
            let of = &rules(&carrier)[0];
            let name = match &carrier {
                Carrier::Header(name) => name.clone(),
                Carrier::Cookie { .. } => COOKIE,
            };
            let headers = HeaderMap::from_iter([(name, format!("s={value}").parse().unwrap())]);
            let request = Request::read(Scope::Rule(of), of.session().unwrap(), &headers, &keys(&[1]), 1);
            prop_assert!(request.live.is_empty());
            let said = request.answer(&PathMatch::Prefix("/".into()), None, "shop/one:80".to_owned(), "uid-1");
            prop_assert!(said.is_some(), "begun anew");
        }
    }
}

#[test]
fn a_session_of_a_service_is_none_of_a_rule_and_the_other_way_round() {
    let carrier = carriers()[1].clone();
    let (rule, service) = (rules(&carrier)[0].clone(), ServiceKey("shop/one".into()));
    let scopes = [Scope::Rule(&rule), Scope::Service(&service)];
    for (own, other) in [(scopes[0], scopes[1]), (scopes[1], scopes[0])] {
        let persistence = rule.session().unwrap();
        let begun = Request::read(own, persistence, &HeaderMap::new(), &keys(&[1]), 1);
        let matched = PathMatch::Prefix("/".into());
        let shown = begun.answer(&matched, None, "shop/one".to_owned(), "uid-1").unwrap();
        let headers = HeaderMap::from_iter([shown]);
        assert_eq!(Request::read(own, persistence, &headers, &keys(&[1]), 1).live.len(), 1);
        assert_eq!(Request::read(other, persistence, &headers, &keys(&[1]), 1).live.len(), 0);
    }
}

#[test]
fn a_backend_is_found_by_what_it_is_and_not_by_its_place() {
    let rule = &rules(&carriers()[0])[0];
    let Action::Forward(backends) = rule.action() else { panic!("forwards") };
    let mut twice = vec![backends[1].clone(), backends[0].clone(), backends[1].clone()];
    twice[0].weight = 0;
    assert_eq!(backend_named(backends, &backend_name(&twice, 0).unwrap()), Some(1));
    assert_eq!(backend_named(&twice, &backend_name(&twice, 2).unwrap()), Some(2));
    assert_eq!(backend_named(backends, &backend_name(&twice, 2).unwrap()), None);
    assert_eq!(backend_named(backends, "shop/three:80"), None);
}
