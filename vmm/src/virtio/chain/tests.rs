use super::*;

const TABLE: Table = Table { address: 0x1000, count: 8 };

/// Address, length, flags, next.
type Raw = (u64, u32, u16, u16);

fn ram(descriptors: &[Raw]) -> GuestRam {
    let ram = GuestRam::new(1 << 20).unwrap();
    put(&ram, TABLE.address, descriptors);
    ram
}

fn put(ram: &GuestRam, at: u64, descriptors: &[Raw]) {
    for (place, (address, length, flags, next)) in (at..).step_by(16).zip(descriptors) {
        let word =
            u128::from(*address) | u128::from(*length) << 64 | u128::from(*flags) << 96 | u128::from(*next) << 112;
        assert!(GuestRam::write(ram, place, &word.to_le_bytes()));
    }
}

fn segment(gpa: u64, length: u32) -> Segment {
    Segment { gpa, length }
}

#[test]
fn direct_and_indirect_chains_give_the_same_record() {
    let direct = ram(&[(0x8000, 16, NEXT, 2), (0, 0, 0, 0), (0x9000, 4096, NEXT | WRITE, 1)]);
    put(&direct, TABLE.address + 16, &[(0xa000, 1, WRITE, 0)]);
    let chain = Chain::read(&direct, TABLE, 0, false).unwrap();
    assert_eq!(chain.readable, [segment(0x8000, 16)]);
    assert_eq!(chain.writable, [segment(0x9000, 4096), segment(0xa000, 1)]);
    assert_eq!((chain.out_bytes(), chain.in_bytes()), (16, 4097));
    let indirect = ram(&[(0x2000, 48, INDIRECT, 0)]);
    put(&indirect, 0x2000, &[(0x8000, 16, NEXT, 1), (0x9000, 4096, NEXT | WRITE, 2), (0xa000, 1, WRITE, 0)]);
    assert_eq!(Chain::read(&indirect, TABLE, 0, true).unwrap(), chain);
    assert_eq!(Chain::read(&indirect, TABLE, 0, false), Err(GuestError::Indirect), "it was not negotiated");
}

#[test]
fn what_is_wrong_is_named() {
    let end = 1 << 20;
    let cases: [(&[Raw], GuestError); 9] = [
        (&[(0x8000, 1, NEXT, 0)], GuestError::TooLong),
        (&[(0x8000, 1, NEXT, 8)], GuestError::Index(8, 8)),
        (&[(end - 1, 2, 0, 0)], GuestError::Buffer(end - 1, 2)),
        (&[(u64::MAX, u32::MAX, 0, 0)], GuestError::Buffer(u64::MAX, u32::MAX)),
        (&[(0x8000, 1, WRITE | NEXT, 1), (0x8000, 1, 0, 0)], GuestError::Order),
        (&[(0x2000, 24, INDIRECT, 0)], GuestError::Table(24)),
        (&[(0x2000, 16 * 9, INDIRECT, 0)], GuestError::Table(144)),
        (&[(!15, 32, INDIRECT, 0)], GuestError::Place(!15)),
        (&[(0x8000, 0, 0, 0)], GuestError::Empty),
    ];
    for (descriptors, error) in cases {
        assert_eq!(Chain::read(&ram(descriptors), TABLE, 0, true), Err(error));
    }
    assert_eq!(Chain::read(&ram(&[]), TABLE, 9, true), Err(GuestError::Index(9, 8)));
    let nested = ram(&[(0x2000, 16, INDIRECT, 0)]);
    put(&nested, 0x2000, &[(0x3000, 16, INDIRECT, 0)]);
    assert_eq!(Chain::read(&nested, TABLE, 0, true), Err(GuestError::Indirect));
}

#[test]
fn pieces_follow_the_buffers() {
    let segments = [segment(0x1000, 10), segment(0x2000, 5)];
    let mut pieces = Pieces::new(&segments);
    assert_eq!(pieces.next(4), Some((0x1000, 4)));
    assert_eq!(pieces.next(100), Some((0x1004, 6)), "a piece ends with its buffer");
    assert_eq!(pieces.next(5), Some((0x2000, 5)));
    assert_eq!(pieces.next(1), None);
    assert_eq!(Pieces::after(&segments, 14).next(9), Some((0x2004, 1)));
    assert_eq!(Pieces::after(&segments, 15).next(9), None);
    assert_eq!(Pieces::after(&segments, u64::MAX).next(9), None);
}
