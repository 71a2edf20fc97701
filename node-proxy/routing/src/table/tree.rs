//! Entries by path segment: prefixes, and regular expressions by the segments that they start with.

use std::collections::HashMap;

use super::Entry;
use super::bucket::{Bucket, Search};
use crate::path::segments;

#[derive(Debug)]
pub(super) struct Tree {
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// The root is its own.
    parent: usize,
    children: HashMap<Box<str>, usize>,
    prefixes: Bucket,
    regexes: Bucket,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { nodes: vec![Node::default()] }
    }
}

impl Tree {
    pub(super) fn prefixes(&mut self, prefix: &str) -> &mut Bucket {
        &mut self.node(prefix).prefixes
    }

    pub(super) fn regexes(&mut self, first_segments: &str) -> &mut Bucket {
        &mut self.node(first_segments).regexes
    }

    fn node(&mut self, path: &str) -> &mut Node {
        let mut at = 0;
        for segment in segments(path) {
            at = match self.nodes[at].children.get(segment) {
                Some(&child) => child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node { parent: at, ..Node::default() });
                    self.nodes[at].children.insert(segment.into(), child);
                    child
                }
            };
        }
        &mut self.nodes[at]
    }

    pub(super) fn finish(&mut self, entries: &[Entry]) {
        for node in &mut self.nodes {
            node.prefixes.finish(entries);
            node.regexes.finish(entries);
        }
    }

    /// Regular expressions come before prefixes, and the longest prefix first.
    pub(super) fn search(&self, search: &mut Search<'_, '_>) {
        let deepest = self.deepest(search.request.path);
        for node in self.upwards(deepest) {
            node.regexes.search(search);
        }
        for node in self.upwards(deepest) {
            if search.is_over() {
                return;
            }
            node.prefixes.search(search);
        }
    }

    fn deepest(&self, path: &str) -> usize {
        let mut at = 0;
        for segment in segments(path) {
            match self.nodes[at].children.get(segment) {
                Some(&child) => at = child,
                None => break,
            }
        }
        at
    }

    fn upwards(&self, from: usize) -> impl Iterator<Item = &Node> {
        let next = |at: &usize| (*at != 0).then(|| self.nodes[*at].parent);
        std::iter::successors(Some(from), next).map(|at| &self.nodes[at])
    }
}
