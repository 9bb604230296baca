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

/// Where execution recently went on after an exit, by guest EIP.
pub struct Routes(Box<[Option<(u32, u64, Route)>]>);

impl Routes {
    /// No routes.
    pub fn new() -> Self {
        Self(vec![None; ROUTES].into())
    }

    fn index(eip: u32, mode: Mode, cr3: u32) -> usize {
        (eip ^ eip >> 11 ^ cr3 >> 12 ^ (mode.user() as u32) << 5) as usize % ROUTES
    }

    pub(super) fn find(&self, eip: u32, mode: Mode, cr3: u32, version: u64) -> Option<Route> {
        let (at, made, route) = self.0[Self::index(eip, mode, cr3)]?;
        let same = at == eip && made == version && route.active.mode == mode && route.active.cr3 == cr3;
        same.then_some(route)
    }

    pub(super) fn add(&mut self, eip: u32, version: u64, route: Route) {
        self.0[Self::index(eip, route.active.mode, route.active.cr3)] = Some((eip, version, route));
    }
}
