//! PCI: configuration mechanism 1, and the functions of bus 0 (PCI local bus specification 3.0, §3.2.2.3 and §6).
//!
//! The board's own functions are plain [`ConfigSpace`]s here. Devices of other rooms join as [`PciFunction`]s, which
//! lock inside: the board calls them with its own lock released, so they may raise interrupts while being called.

mod bridges;
mod config;

pub use bridges::Bridges;
pub use config::ConfigSpace;

use std::collections::BTreeMap;
use std::sync::Arc;

/// Which address space a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory.
    Memory,
}

/// A region that a function decodes at this moment: present only while the command register enables it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// BAR number, 0 to 5.
    pub index: u8,
    /// Address space.
    pub kind: BarKind,
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A PCI function of another room. All values are hostile; no call may block or panic.
pub trait PciFunction: Send + Sync {
    /// Reads `width` (1, 2 or 4) bytes of configuration space at `offset`, which do not cross a dword.
    fn config_read(&self, offset: u8, width: u8) -> u32;
    /// Writes `width` bytes of configuration space at `offset`.
    fn config_write(&self, offset: u8, width: u8, value: u32);
    /// The regions that are decoded now. Asked after every configuration write.
    fn bars(&self) -> Vec<Bar>;
    /// Reads `width` (1, 2, 4 or 8) bytes at `offset` of BAR `index`.
    fn bar_read(&self, index: u8, offset: u64, width: u8) -> u64;
    /// Writes `width` bytes at `offset` of BAR `index`.
    fn bar_write(&self, index: u8, offset: u64, width: u8, value: u64);
    /// The board was reset.
    fn reset(&self);
}

/// An access that goes to a function of another room, once the board's lock is released.
pub enum Route<T> {
    /// Done here.
    Here(T),
    /// For this function, at this offset of its configuration space.
    There(Arc<dyn PciFunction>, u8),
}

/// Bus 0.
pub struct Pci {
    address: u32,
    /// The board's own bridges.
    pub bridges: Bridges,
    functions: BTreeMap<u8, (Arc<dyn PciFunction>, Vec<Bar>)>,
}

impl Pci {
    /// A bus with the board's bridges alone.
    pub fn new() -> Self {
        Self { address: 0, bridges: Bridges::new(), functions: BTreeMap::new() }
    }

    /// Attaches `function` at `devfn` (device << 3 | function). False if the place is taken.
    pub fn attach(&mut self, devfn: u8, function: Arc<dyn PciFunction>) -> bool {
        if self.bridges.get(devfn).is_some() || self.functions.contains_key(&devfn) {
            return false;
        }
        let bars = function.bars();
        self.functions.insert(devfn, (function, bars));
        true
    }

    /// The functions of other rooms.
    pub fn attached(&self) -> Vec<Arc<dyn PciFunction>> {
        self.functions.values().map(|(f, _)| f.clone()).collect()
    }

    /// Power-up state of bus and bridges.
    pub fn reset(&mut self) {
        self.address = 0;
        self.bridges = Bridges::new();
    }

    /// CONFIG_ADDRESS.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Writes CONFIG_ADDRESS.
    pub fn set_address(&mut self, value: u32) {
        self.address = value & 0x80ff_fffc;
    }

    /// The function and register that CONFIG_DATA at byte `lane` reaches; None if disabled or on another bus.
    fn selected(&self, lane: u16) -> Option<(u8, u8)> {
        (self.address & 0x80ff_0000 == 0x8000_0000)
            .then_some(((self.address >> 8) as u8, self.address as u8 | (lane & 3) as u8))
    }

    /// Reads CONFIG_DATA at byte `lane`: all ones where nobody answers.
    pub fn config_read(&self, lane: u16, width: u8) -> Route<u32> {
        let absent = super::ones(width.min(4)) as u32;
        let Some((devfn, offset)) = self.selected(lane) else { return Route::Here(absent) };
        if let Some(space) = self.bridges.get(devfn) {
            return Route::Here(space.read(offset, width));
        }
        match self.functions.get(&devfn) {
            Some((function, _)) => Route::There(function.clone(), offset),
            None => Route::Here(absent),
        }
    }

    /// Writes CONFIG_DATA at byte `lane`.
    pub fn config_write(&mut self, lane: u16, width: u8, value: u32) -> Route<()> {
        let Some((devfn, offset)) = self.selected(lane) else { return Route::Here(()) };
        if let Some(space) = self.bridges.get_mut(devfn) {
            space.write(offset, width, value);
            return Route::Here(());
        }
        match self.functions.get(&devfn) {
            Some((function, _)) => Route::There(function.clone(), offset),
            None => Route::Here(()),
        }
    }

    /// Replaces what is known of the regions of `function`.
    pub fn update_bars(&mut self, function: &Arc<dyn PciFunction>, bars: Vec<Bar>) {
        for (known, slot) in self.functions.values_mut() {
            if Arc::ptr_eq(known, function) {
                *slot = bars;
                return;
            }
        }
    }

    /// The function that decodes all `width` bytes at `address`, with BAR number and offset.
    pub fn decode(&self, kind: BarKind, address: u64, width: u8) -> Option<(Arc<dyn PciFunction>, u8, u64)> {
        self.functions.values().find_map(|(function, bars)| {
            let bar = bars.iter().find(|b| {
                let offset = address.wrapping_sub(b.base);
                b.kind == kind && offset < b.size && b.size - offset >= u64::from(width)
            })?;
            Some((function.clone(), bar.index, address.wrapping_sub(bar.base)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanism_one() {
        let mut pci = Pci::new();
        let read = |pci: &Pci, lane, width| match pci.config_read(lane, width) {
            Route::Here(v) => v,
            Route::There(..) => panic!(),
        };
        assert_eq!(read(&pci, 0, 4), u32::MAX, "disabled");
        pci.set_address(0x8000_0000);
        assert_eq!(read(&pci, 0, 4), 0x1237_8086);
        assert_eq!(read(&pci, 2, 2), 0x1237);
        assert_eq!(read(&pci, 1, 1), 0x80);
        pci.set_address(0x8000_0800);
        assert_eq!(read(&pci, 0, 4), 0x7110_8086);
        pci.set_address(0x8000_0b00);
        assert_eq!(read(&pci, 0, 4), 0x7113_8086);
        pci.set_address(0x8000_1000);
        assert_eq!(read(&pci, 0, 2), 0xffff, "no device 2");
        pci.set_address(0x8001_0000);
        assert_eq!(read(&pci, 0, 4), u32::MAX, "no bus 1");
    }

    #[test]
    fn the_pm_window_moves() {
        let mut pci = Pci::new();
        assert_eq!(pci.bridges.pm_window(), Some(0x600));
        pci.set_address(0x8000_0b40);
        pci.config_write(0, 4, 0xb000);
        assert_eq!(pci.bridges.pm_window(), Some(0xb000));
        pci.set_address(0x8000_0b80);
        pci.config_write(0, 1, 0);
        assert_eq!(pci.bridges.pm_window(), None);
    }
}
