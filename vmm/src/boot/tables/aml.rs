//! A tiny encoder of ACPI Machine Language (ACPI 6.5, chapter 20): just the terms that the DSDT uses. Every function
//! returns the bytes of one term; terms nest by concatenation.

/// A two-byte name opcode path like `_SB_` or `\_S5_`; segments must have four characters each.
fn path(name: &str) -> Vec<u8> {
    let (root, rest) = match name.strip_prefix('\\') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let segments: Vec<&str> = rest.split('.').filter(|s| !s.is_empty()).collect();
    let mut bytes = if root { vec![b'\\'] } else { Vec::new() };
    match segments.len() {
        0 => bytes.push(0),
        1 => {}
        2 => bytes.push(0x2e),
        n => bytes.extend([0x2f, n as u8]),
    }
    for s in segments {
        debug_assert_eq!(s.len(), 4, "a name segment has four characters");
        bytes.extend(s.bytes());
    }
    bytes
}

/// PkgLength (§20.2.4) for a body of this many bytes, itself included.
fn package_length(body: usize) -> Vec<u8> {
    if body + 1 < 0x40 {
        return vec![(body + 1) as u8];
    }
    let extra = match body {
        n if n + 2 < 1 << 12 => 1,
        n if n + 3 < 1 << 20 => 2,
        _ => 3,
    };
    let total = body + 1 + extra;
    let mut bytes = vec![(extra as u8) << 6 | (total & 0xf) as u8];
    bytes.extend((0..extra).map(|i| (total >> (4 + 8 * i)) as u8));
    bytes
}

fn packaged(opcode: &[u8], body: Vec<u8>) -> Vec<u8> {
    [opcode, &package_length(body.len()), &body].concat()
}

/// The shortest integer constant.
pub fn integer(value: u32) -> Vec<u8> {
    match value {
        0 => vec![0],
        1 => vec![1],
        v if v <= 0xff => vec![0x0a, v as u8],
        v if v <= 0xffff => [&[0x0b], &(v as u16).to_le_bytes()[..]].concat(),
        v => [&[0x0c], &v.to_le_bytes()[..]].concat(),
    }
}

/// EISAID("PNP0A03"): three letters and four hexadecimal digits, compressed.
pub fn eisa_id(id: &str) -> Vec<u8> {
    let b = id.as_bytes();
    let letter = |i: usize| u32::from(b[i] - b'@') & 0x1f;
    let digits = u32::from_str_radix(&id[3..], 16).unwrap_or(0);
    let word = letter(0) << 26 | letter(1) << 21 | letter(2) << 16 | digits;
    integer(word.swap_bytes())
}

/// Name (path, value).
pub fn name(at: &str, value: Vec<u8>) -> Vec<u8> {
    [vec![0x08], path(at), value].concat()
}

/// Package () { elements }.
pub fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    packaged(&[0x12], [vec![elements.len() as u8], elements.concat()].concat())
}

/// Scope (path) { terms }.
pub fn scope(at: &str, terms: &[Vec<u8>]) -> Vec<u8> {
    packaged(&[0x10], [path(at), terms.concat()].concat())
}

/// Device (name) { terms }.
pub fn device(at: &str, terms: &[Vec<u8>]) -> Vec<u8> {
    packaged(&[0x5b, 0x82], [path(at), terms.concat()].concat())
}

/// Processor (name, id, 0, 0) {}: how ACPI 1.0 to 5.1 name processors.
pub fn processor(at: &str, id: u8) -> Vec<u8> {
    packaged(&[0x5b, 0x83], [path(at), vec![id, 0, 0, 0, 0, 0]].concat())
}

/// ResourceTemplate: the descriptors in a buffer, with the end tag.
pub fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    // A checksum of 0 means "not checked" (§6.4.2.9).
    let body = [descriptors.concat(), vec![0x79, 0]].concat();
    packaged(&[0x11], [integer(body.len() as u32), body].concat())
}

/// IO (Decode16, base, base, 1, length).
pub fn io(base: u16, length: u8) -> Vec<u8> {
    let b = base.to_le_bytes();
    vec![0x47, 1, b[0], b[1], b[0], b[1], 1, length]
}

/// IRQNoFlags () { irq }.
pub fn irq(irq: u8) -> Vec<u8> {
    let mask = (1u16 << (irq & 15)).to_le_bytes();
    vec![0x22, mask[0], mask[1]]
}

/// Memory32Fixed (ReadWrite, base, length).
pub fn memory32_fixed(base: u32, length: u32) -> Vec<u8> {
    [&[0x86, 9, 0, 1], &base.to_le_bytes()[..], &length.to_le_bytes()].concat()
}

/// WordBusNumber of a producer: buses `first` to `last`.
pub fn bus_range(first: u16, last: u16) -> Vec<u8> {
    word_range(2, 0, first, last)
}

/// WordIO of a producer: ports `first` to `last`.
pub fn io_range(first: u16, last: u16) -> Vec<u8> {
    // Entire range: ISA and non-ISA ports.
    word_range(1, 3, first, last)
}

/// Word address space descriptor (§6.4.3.5.3): fixed minimum and maximum, positive decode.
fn word_range(kind: u8, flags: u8, first: u16, last: u16) -> Vec<u8> {
    let mut bytes = vec![0x88, 13, 0, kind, 0x0c, flags];
    for word in [0, first, last, 0, last.wrapping_sub(first).wrapping_add(1)] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// DWordMemory of a producer (§6.4.3.5.2): non-cacheable, read/write, `first` to `last`.
pub fn memory_range(first: u32, last: u32) -> Vec<u8> {
    let mut bytes = vec![0x87, 23, 0, 0, 0x0c, 1];
    for word in [0, first, last, 0, last.wrapping_sub(first).wrapping_add(1)] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}
