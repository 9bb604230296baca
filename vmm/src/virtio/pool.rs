//! The data pages of a bounce region: contiguous extents, first fit from the bottom, so that a device with little in
//! flight uses the same few pages over and over, which stay in the caches and keep the region's footprint small.

/// Contiguous data pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Number of the first page in the region.
    pub first: u64,
    /// How many; zero is an extent too.
    pub pages: u64,
}

/// Which data pages are free.
#[derive(Debug)]
pub struct Pool {
    first: u64,
    taken: Vec<bool>,
    free: u64,
}

impl Pool {
    /// All of `pages` pages from page `first` on are free.
    pub fn new(first: u64, pages: u64) -> Self {
        Self { first, taken: vec![false; pages as usize], free: pages }
    }

    /// How many pages there are, free or not.
    pub fn capacity(&self) -> u64 {
        self.taken.len() as u64
    }

    /// As [`Self::take`], if that leaves `reserve` pages free.
    pub fn take_leaving(&mut self, pages: u64, reserve: u64) -> Option<Extent> {
        if pages.saturating_add(reserve) > self.free { None } else { self.take(pages) }
    }

    /// Takes `pages` contiguous pages; None while there are none.
    pub fn take(&mut self, pages: u64) -> Option<Extent> {
        if pages > self.free {
            return None;
        }
        let mut run = 0;
        for at in 0..self.taken.len() {
            if run == pages {
                break;
            }
            run = if self.taken[at] { 0 } else { run + 1 };
            if run == pages {
                let start = at + 1 - pages as usize;
                self.taken[start..=at].fill(true);
                self.free -= pages;
                return Some(Extent { first: self.first + start as u64, pages });
            }
        }
        (pages == 0).then(Extent::default)
    }

    /// Gives an extent back that [`Self::take`] gave.
    pub fn give(&mut self, extent: Extent) {
        let start = extent.first.saturating_sub(self.first) as usize;
        for taken in self.taken.iter_mut().skip(start).take(extent.pages as usize).filter(|taken| **taken) {
            *taken = false;
            self.free += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_disjoint_and_come_back() {
        let mut pool = Pool::new(8, 10);
        let a = pool.take(4).unwrap();
        let b = pool.take(4).unwrap();
        assert_eq!((a, b), (Extent { first: 8, pages: 4 }, Extent { first: 12, pages: 4 }));
        assert_eq!(pool.take(3), None);
        assert_eq!(pool.take_leaving(1, 2), None);
        let last = pool.take_leaving(1, 1).unwrap();
        pool.give(last);
        assert_eq!(pool.take(0), Some(Extent::default()), "nothing needs no room");
        pool.give(a);
        assert_eq!(pool.take(5), None, "six are free, but not together");
        assert_eq!(pool.take(4), Some(a), "the lowest first");
        pool.give(a);
        pool.give(b);
        pool.give(Extent::default());
        assert_eq!(pool.take(10), Some(Extent { first: 8, pages: 10 }));
    }
}
