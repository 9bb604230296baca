//! Ways back into emitted code that were taken lately, so that no page is walked and no block looked up for them.

use super::{Active, Mode};

/// How to get to a block again without asking anyone.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub(super) active: Active,
    pub(super) target: u64,
    pub(super) window: u64,
    pub(super) quarters: [u64; 4],
    pub(super) branches: u64,
}

/// Entries of [`Routes`].
const ROUTES: usize = 2048;

/// A route with the EIP and the version that it is for, and how often its window had been forgotten.
type Taken = (u32, u64, u32, Route);

/// Where execution recently went on after an exit, by guest EIP.
pub struct Routes {
    routes: Box<[Option<Taken>]>,
    /// By window.
    forgotten: Vec<u32>,
}

impl Routes {
    /// No routes.
    pub fn new() -> Self {
        Self { routes: vec![None; ROUTES].into(), forgotten: Vec::new() }
    }

    /// Forgets all routes to code in `window`.
    pub fn forget_window(&mut self, window: usize) {
        if self.forgotten.len() <= window {
            self.forgotten.resize(window + 1, 0);
        }
        self.forgotten[window] = self.forgotten[window].wrapping_add(1);
    }

    fn forgotten(&self, window: usize) -> u32 {
        self.forgotten.get(window).copied().unwrap_or(0)
    }

    fn index(eip: u32, mode: Mode, cr3: u32) -> usize {
        (eip ^ eip >> 11 ^ cr3 >> 12 ^ (mode.user() as u32) << 5) as usize % ROUTES
    }

    pub(super) fn find(&self, eip: u32, mode: Mode, cr3: u32, version: u64) -> Option<Route> {
        let (at, made, forgotten, route) = self.routes[Self::index(eip, mode, cr3)]?;
        let active = &route.active;
        let same = at == eip && made == version && active.mode == mode && active.cr3 == cr3;
        (same && forgotten == self.forgotten(active.code_window)).then_some(route)
    }

    pub(super) fn add(&mut self, eip: u32, version: u64, route: Route) {
        let place = Self::index(eip, route.active.mode, route.active.cr3);
        self.routes[place] = Some((eip, version, self.forgotten(route.active.code_window), route));
    }
}
