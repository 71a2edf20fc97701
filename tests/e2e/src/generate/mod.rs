//! Routes and requests made at random, from alphabets so small that they meet. One seed always makes the same.

mod requests;
mod routes;

pub use requests::{Addresses, Asker, Generated};
pub use routes::Parent;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// What is made, and from which seed.
pub struct Generator {
    random: SmallRng,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(seed) }
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of.choose(&mut self.random).expect("something to choose from")
    }

    /// True so many times of a hundred.
    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }
}
