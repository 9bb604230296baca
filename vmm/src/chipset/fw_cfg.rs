//! fw_cfg, QEMU's way of handing items to firmware and kernels (QEMU docs/specs/fw_cfg): a selector, a data port that
//! reads the item byte by byte, and a DMA interface that copies it into RAM.
//!
//! Items are read-only and made by the machine before the guest runs. Writes by the guest are refused.

use std::collections::BTreeMap;

use crate::mmu::GuestRam;

/// Keys with a fixed meaning.
pub mod key {
    #![allow(missing_docs)]
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NB_CPUS: u16 = 0x05;
    pub const FILE_DIR: u16 = 0x19;
    pub const FILE_FIRST: u16 = 0x20;
}

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;
/// "QEMU CFG", what the DMA register reads as.
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;
/// Reads past an item's end give zeros; no more of them than this in one transfer, in bytes.
const ZERO_LIMIT: u64 = 1 << 20;

/// The interface and its items.
#[derive(Debug)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    names: Vec<(String, u16)>,
    selected: u16,
    offset: u64,
    dma_high: u32,
}

impl FwCfg {
    /// An interface that holds the signature and an empty directory.
    pub fn new() -> Self {
        let mut items = BTreeMap::new();
        items.insert(key::SIGNATURE, b"QEMU".to_vec());
        // Bit 0: the traditional interface, bit 1: DMA.
        items.insert(key::ID, 3u32.to_le_bytes().to_vec());
        items.insert(key::FILE_DIR, 0u32.to_be_bytes().to_vec());
        Self { items, names: Vec::new(), selected: 0, offset: 0, dma_high: 0 }
    }

    /// Adds or replaces the item at a fixed key.
    pub fn add(&mut self, key: u16, bytes: Vec<u8>) {
        self.items.insert(key, bytes);
    }

    /// Adds or replaces a named file; names are at most 55 bytes. False if the name is too long or keys ran out.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> bool {
        let key = match self.names.iter().find(|(n, _)| n == name) {
            Some((_, key)) => *key,
            None => key::FILE_FIRST + self.names.len() as u16,
        };
        if name.len() > 55 || key >= 0x4000 {
            return false;
        }
        if !self.items.contains_key(&key) {
            self.names.push((name.to_owned(), key));
        }
        self.items.insert(key, bytes);
        let directory = self.directory();
        self.items.insert(key::FILE_DIR, directory);
        true
    }

    /// Big-endian count, then for each file: size, key, reserved, name in 56 bytes. Sorted by name.
    fn directory(&self) -> Vec<u8> {
        let mut sorted: Vec<_> = self.names.iter().collect();
        sorted.sort();
        let mut out = (sorted.len() as u32).to_be_bytes().to_vec();
        for (name, key) in sorted {
            let size = self.items.get(key).map_or(0, Vec::len) as u32;
            out.extend(size.to_be_bytes());
            out.extend(key.to_be_bytes());
            out.extend([0; 2]);
            let mut field = [0; 56];
            field[..name.len()].copy_from_slice(name.as_bytes());
            out.extend(field);
        }
        out
    }

    /// Writes the selector.
    pub fn select(&mut self, key: u16) {
        self.selected = key;
        self.offset = 0;
    }

    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.selected).map_or(&[][..], Vec::as_slice);
        usize::try_from(self.offset).ok().and_then(|at| item.get(at..)).unwrap_or(&[])
    }

    /// Reads the data port: zero past the end.
    pub fn read_data(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.offset = self.offset.saturating_add(1);
        byte
    }

    /// Reads 32 bits of the DMA register (big-endian, as the port sees it).
    pub fn read_dma(&self, low: bool) -> u32 {
        let half = if low { DMA_SIGNATURE as u32 } else { (DMA_SIGNATURE >> 32) as u32 };
        half.swap_bytes()
    }

    /// Writes 32 bits of the DMA register. Writing the low half runs the transfer: returns the RAM that changed, as
    /// ranges of physical addresses (the control structure, and the data).
    pub fn write_dma(&mut self, low: bool, value: u32, ram: &GuestRam) -> Vec<(u64, u64)> {
        if !low {
            self.dma_high = value.swap_bytes();
            return Vec::new();
        }
        let at = u64::from(std::mem::take(&mut self.dma_high)) << 32 | u64::from(value.swap_bytes());
        let mut request = [0; 16];
        if !ram.read(at, &mut request) {
            return Vec::new();
        }
        let mut changed = Vec::new();
        let ok = self.transfer(&request, ram, &mut changed);
        let status = if ok { 0 } else { DMA_ERROR };
        if ram.write(at, &status.to_be_bytes()) {
            changed.push((at, at + 4));
        }
        changed
    }

    fn transfer(&mut self, request: &[u8; 16], ram: &GuestRam, changed: &mut Vec<(u64, u64)>) -> bool {
        let be = |at: usize| u32::from_be_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let (control, length) = (be(0), u64::from(be(4)));
        let address = u64::from(be(8)) << 32 | u64::from(be(12));
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let ok = match control & (DMA_READ | DMA_WRITE | DMA_SKIP) {
            0 | DMA_SKIP => true,
            c if c & DMA_READ != 0 => self.copy_out(address, length, ram, changed),
            _ => false,
        };
        self.offset = self.offset.saturating_add(length);
        ok
    }

    fn copy_out(&self, address: u64, length: u64, ram: &GuestRam, changed: &mut Vec<(u64, u64)>) -> bool {
        let rest = self.rest();
        let data = &rest[..rest.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        let zeros = length - data.len() as u64;
        if zeros > ZERO_LIMIT || !ram.write(address, data) {
            return false;
        }
        let Some(end) = address.checked_add(data.len() as u64) else { return false };
        changed.push((address, end));
        if zeros == 0 {
            return true;
        }
        changed.push((end, end.saturating_add(zeros)));
        ram.write(end, &vec![0; zeros as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(f: &mut FwCfg, key: u16, n: usize) -> Vec<u8> {
        f.select(key);
        (0..n).map(|_| f.read_data()).collect()
    }

    #[test]
    fn signature_and_directory() {
        let mut f = FwCfg::new();
        assert_eq!(read(&mut f, 0, 5), b"QEMU\0");
        assert!(f.add_file("etc/b", vec![1, 2]) && f.add_file("etc/a", vec![3]) && f.add_file("etc/b", vec![9, 8, 7]));
        assert!(!f.add_file(&"x".repeat(56), vec![]));
        let dir = read(&mut f, key::FILE_DIR, 4 + 128);
        assert_eq!(dir[..4], [0, 0, 0, 2]);
        assert_eq!(dir[4..18], [0, 0, 0, 1, 0, 0x21, 0, 0, b'e', b't', b'c', b'/', b'a', 0]);
        assert_eq!(read(&mut f, 0x20, 4), [9, 8, 7, 0]);
        assert_eq!(read(&mut f, 0xffff, 1), [0]);
    }

    #[test]
    fn dma_copies_and_reports() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut f = FwCfg::new();
        f.add_file("x", vec![1, 2, 3]);
        assert_eq!(f.read_dma(false).to_le_bytes(), *b"QEMU");
        let mut run = |control: u32, length: u32, address: u64| {
            let mut r = [0; 16];
            r[..4].copy_from_slice(&control.to_be_bytes());
            r[4..8].copy_from_slice(&length.to_be_bytes());
            r[8..].copy_from_slice(&address.to_be_bytes());
            assert!(ram.write(0x1000, &r));
            f.write_dma(false, 0, &ram);
            let changed = f.write_dma(true, 0x1000u32.swap_bytes(), &ram);
            (ram.read_u32(0x1000).unwrap().swap_bytes(), changed)
        };
        let (status, changed) = run(0x20 << 16 | DMA_SELECT | DMA_READ, 4, 0x2000);
        assert_eq!((status, changed), (0, vec![(0x2000, 0x2003), (0x2003, 0x2004), (0x1000, 0x1004)]));
        assert_eq!(ram.read_u32(0x2000), Some(0x0003_0201));
        assert_eq!(run(DMA_WRITE, 1, 0x2000).0, DMA_ERROR);
        assert_eq!(run(DMA_READ | DMA_SELECT, u32::MAX, 0x2000).0, DMA_ERROR, "bounded");
        assert_eq!(run(DMA_READ | DMA_SELECT, 4, u64::MAX).0, DMA_ERROR);
    }
}
