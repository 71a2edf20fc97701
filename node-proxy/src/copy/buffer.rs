//! How much is read at once: a connection starts at 1 KiB, earns more by filling it, and gives it back.

use crate::tunnel::MAX_FRAME;

/// The largest is a whole number of frames.
const SIZES: [usize; 3] = [1 << 10, 16 << 10, 4 * MAX_FRAME as usize];
/// Reads in a row that fill the buffer before it grows.
const FULL_READS: u8 = 2;
/// Reads in a row that would have fitted the next smaller buffer before it shrinks.
const SMALL_READS: u8 = 16;

/// The largest buffer.
pub(super) const LARGEST: usize = SIZES[2];

/// The size of one direction's reads.
#[derive(Debug, Default)]
pub(super) struct Growth {
    class: usize,
    full: u8,
    small: u8,
}

impl Growth {
    /// Bytes to read at most, given what the workload may still buffer.
    pub(super) fn size(&self, memory_left: u64) -> usize {
        SIZES[..=self.class]
            .iter()
            .rev()
            .copied()
            .find(|size| *size as u64 <= memory_left)
            .unwrap_or(SIZES[0])
    }

    /// Takes note of a read of `read` bytes into a buffer of `size`.
    pub(super) fn record(&mut self, read: usize, size: usize) {
        if read == size {
            self.small = 0;
            self.full += 1;
            if self.full >= FULL_READS {
                self.full = 0;
                self.class = (self.class + 1).min(SIZES.len() - 1);
            }
        } else {
            self.full = 0;
            let fits_smaller = self.class > 0 && read <= SIZES[self.class - 1];
            self.small = if fits_smaller { self.small + 1 } else { 0 };
            if self.small >= SMALL_READS {
                self.small = 0;
                self.class -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_full_reads_and_shrinks_with_small_ones() {
        let mut growth = Growth::default();
        let mut seen = vec![growth.size(u64::MAX)];
        for _ in 0..6 {
            let size = growth.size(u64::MAX);
            growth.record(size, size);
            seen.push(growth.size(u64::MAX));
        }
        assert_eq!(seen, [1024, 1024, 16384, 16384, LARGEST, LARGEST, LARGEST]);
        for _ in 0..2 * SMALL_READS {
            growth.record(10, growth.size(u64::MAX));
        }
        assert_eq!(growth.size(u64::MAX), 1024);
    }

    #[test]
    fn one_large_read_between_small_ones_keeps_the_buffer() {
        let mut growth = Growth { class: 1, ..Growth::default() };
        for _ in 0..10 {
            for _ in 0..SMALL_READS - 1 {
                growth.record(10, 16384);
            }
            growth.record(5000, 16384);
        }
        assert_eq!(growth.size(u64::MAX), 16384);
    }

    #[test]
    fn a_workload_short_of_memory_reads_little() {
        let growth = Growth { class: 2, ..Growth::default() };
        assert_eq!(growth.size(20_000), 16384);
        assert_eq!(growth.size(0), 1024);
    }
}
