//! From a route to what is evaluated: values checked, regular expressions compiled.

mod check;
mod matches;

use std::sync::{Arc, OnceLock};

use crate::conditions::Conditions;
use crate::error::{At, CompileError};
use crate::filters::filter_kind;
use crate::model::{
    Action, Backend, Filter, Hostname, Match, Mirror, Retry, Route, RouteKey, RouteKind, Rule, Timeouts,
};
use crate::session::SessionPersistence;
use crate::weights::Wheel;

pub(crate) use check::belongs_to_connection;

/// A route that can be honoured to the letter.
#[derive(Debug)]
pub struct CompiledRoute {
    route: Arc<Route>,
    rules: Vec<Arc<CompiledRule>>,
}

/// A rule of a [`CompiledRoute`].
#[derive(Debug)]
pub struct CompiledRule {
    route: Arc<Route>,
    full_name: Arc<str>,
    index: usize,
    conditions: Vec<Conditions>,
    pub(crate) wheel: OnceLock<Arc<Wheel>>,
    pub(crate) mirrors: Vec<(MirrorPlace, OnceLock<Arc<Wheel>>)>,
}

/// Where a mirror stands in its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MirrorPlace {
    /// Whose filters: the rule's own, or those of one of its backends.
    pub backend: Option<usize>,
    /// Among all filters of that list.
    pub filter: usize,
}

impl CompiledRoute {
    /// Checks a route as a whole. Paths are kept in their normal form, so that [`CompiledRoute::route`] may write a
    /// `%7e` as `~`.
    pub fn compile(mut route: Route) -> Result<CompiledRoute, CompileError> {
        check::hostnames(route.key.kind, &route.hostnames)?;
        let mut conditions = Vec::with_capacity(route.rules.len());
        for index in 0..route.rules.len() {
            check::rule_name(&route.rules, index)?;
            let rule = &mut route.rules[index];
            let at = At::Spec.item("rules", index);
            conditions.push(matches::compile(route.key.kind, &mut rule.matches, &at)?);
            check::filters(route.key.kind, rule, &at)?;
            check::timeouts(&rule.timeouts, &at)?;
            check::connections(route.key.kind, rule, &at)?;
        }
        let full_name: Arc<str> = format!("{}/{}", route.key.namespace, route.key.name).into();
        let route = Arc::new(route);
        let rule = |(index, conditions)| {
            let (route, full_name) = (Arc::clone(&route), Arc::clone(&full_name));
            let places = mirrors(&route.rules[index]).map(|(place, _)| (place, OnceLock::new()));
            let mirrors = places.collect();
            Arc::new(CompiledRule { route, full_name, index, conditions, wheel: OnceLock::new(), mirrors })
        };
        let rules = conditions.into_iter().enumerate().map(rule).collect();
        Ok(CompiledRoute { route, rules })
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    /// In the order of the route.
    pub fn rules(&self) -> &[Arc<CompiledRule>] {
        &self.rules
    }
}

impl CompiledRule {
    pub fn route(&self) -> &Route {
        &self.route
    }

    pub fn key(&self) -> &RouteKey {
        &self.route.key
    }

    /// `namespace/name` of the route.
    pub fn full_name(&self) -> &Arc<str> {
        &self.full_name
    }

    /// Its place in the route, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn rule(&self) -> &Rule {
        &self.route.rules[self.index]
    }

    pub fn name(&self) -> Option<&Arc<str>> {
        self.rule().name.as_ref()
    }

    /// The rule's own name, else its index: what logs and `explain` call it.
    pub fn label(&self) -> String {
        self.name().map_or_else(|| self.index.to_string(), |name| name.to_string())
    }

    pub fn matches(&self) -> &[Match] {
        &self.rule().matches
    }

    /// In the order of the route.
    pub fn filters(&self) -> &[Filter] {
        &self.rule().filters
    }

    pub fn action(&self) -> &Action {
        &self.rule().action
    }

    pub fn timeouts(&self) -> Timeouts {
        self.rule().timeouts
    }

    pub fn retry(&self) -> Option<&Retry> {
        self.rule().retry.as_ref()
    }

    pub fn session(&self) -> Option<&SessionPersistence> {
        self.rule().session.as_ref()
    }

    /// The hostnames in effect; empty: any.
    pub fn hostnames(&self) -> &[Hostname] {
        &self.route.hostnames
    }

    /// The next backend by weight, with its place in the rule; `None` without backends or if all have weight 0.
    /// Counts on the wheel that [`crate::weights::Wheels::adopt`] gave the rule, else on one of its own.
    pub fn pick_backend(&self) -> Option<(usize, &Backend)> {
        let Action::Forward(backends) = self.action() else { return None };
        let index = self.wheel().pick()?;
        Some((index, backends.get(index)?))
    }

    /// Whether the next request is copied by the mirror at a place; its share is kept as weights are.
    pub fn is_mirrored(&self, place: MirrorPlace) -> bool {
        let Some((_, wheel)) = self.mirrors.iter().find(|(known, _)| *known == place) else { return false };
        let Some((_, mirror)) = mirrors(self.rule()).find(|(known, _)| *known == place) else { return false };
        let wheel = wheel.get_or_init(|| Arc::new(Wheel::new(mirror.weights())));
        wheel.pick() == Some(0)
    }

    /// The rule's weighted choice.
    pub fn wheel(&self) -> &Arc<Wheel> {
        self.wheel.get_or_init(|| Arc::new(Wheel::new(self.weights())))
    }

    pub(crate) fn weights(&self) -> impl Iterator<Item = u32> {
        let backends: &[Backend] = match self.action() {
            Action::Forward(backends) => backends,
            Action::Refuse(_) => &[],
        };
        backends.iter().map(|backend| backend.weight)
    }

    pub(crate) fn conditions(&self) -> &[Conditions] {
        &self.conditions
    }
}

/// The mirrors of a rule: of its own filters, then of its backends'.
pub fn mirrors(rule: &Rule) -> impl Iterator<Item = (MirrorPlace, &Mirror)> {
    let backends: &[Backend] = match &rule.action {
        Action::Forward(backends) => backends,
        Action::Refuse(_) => &[],
    };
    let of_backends = backends.iter().enumerate().map(|(index, backend)| (Some(index), &backend.filters));
    std::iter::once((None, &rule.filters)).chain(of_backends).flat_map(|(backend, filters)| {
        filters.iter().enumerate().filter_map(move |(filter, of)| match of {
            Filter::Mirror(mirror) => Some((MirrorPlace { backend, filter }, mirror)),
            _ => None,
        })
    })
}

impl Mirror {
    /// Copied, then not copied.
    pub(crate) fn weights(&self) -> [u32; 2] {
        [self.share.numerator(), self.share.denominator() - self.share.numerator()]
    }
}

fn kind_allows(kind: RouteKind, filter: &Filter, at: &At<'_>) -> Result<(), CompileError> {
    match (kind, filter) {
        (RouteKind::Grpc, Filter::Redirect(_) | Filter::Rewrite(_) | Filter::Cors(_))
        | (RouteKind::Tls | RouteKind::Tcp, _) => {
            Err(CompileError::FilterOfOtherKind { at: at.to_string(), filter: filter_kind(filter), kind })
        }
        _ => Ok(()),
    }
}
