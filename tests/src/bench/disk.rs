//! Disks: fio in a guest, on one image in memory, served in every way that there is.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::report::{mebibytes, median, ratio};
use super::seat::Seat;
use crate::debian::{Debian, Flavour};
use crate::disks::{Daemon, pattern};
use crate::image::{self, Contents};
use crate::monitor::{Guest, Monitor};

/// Bytes of the image: more than any cache, and less than a guest's RAM.
const IMAGE: usize = 256 << 20;
/// Seconds of one measurement.
const SECONDS: u32 = 3;
/// Fields of fio's terse output, version 3, counted from 0: read bandwidth in KiB/s, and reads a second.
const BANDWIDTH: usize = 6;
const IOPS: usize = 7;

/// What fio is asked for.
#[derive(Clone, Copy, Debug)]
struct Work {
    name: &'static str,
    arguments: &'static str,
    field: usize,
    unit: &'static str,
}

const WORKS: [Work; 3] = [
    Work { name: "random 4K, depth 1", arguments: "--rw=randread --bs=4k --iodepth=1", field: IOPS, unit: "IOPS" },
    Work { name: "random 4K, depth 32", arguments: "--rw=randread --bs=4k --iodepth=32", field: IOPS, unit: "IOPS" },
    Work { name: "sequential 1M", arguments: "--rw=read --bs=1M --iodepth=1", field: BANDWIDTH, unit: "KiB/s" },
];

/// Who serves the image to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Contender {
    /// Bulkhead, with its disk process, which sees a bounce region.
    Bulkhead,
    /// Bulkhead with `dma=shared`: its disk process maps guest RAM.
    BulkheadShared,
    /// QEMU's translator and QEMU's own virtio-blk.
    Qemu,
    /// QEMU's translator and qemu-storage-daemon's vhost-user-blk.
    QemuVhostUser,
}

/// One work's rates by contender, a number for each round.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: &'static str,
    unit: &'static str,
    rates: Vec<(Contender, Vec<u64>)>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    rows: Vec<Row>,
    /// Bytes beside guest RAM, of all processes of Bulkhead's machine: after boot and after the work.
    own_memory: [u64; 2],
    /// Bytes of page tables at the same times.
    page_tables: [u64; 2],
}

/// A contender's guest, and whoever serves its disk if that is not its monitor's business.
struct Place {
    contender: Contender,
    seat: Seat,
    _daemon: Option<Daemon>,
}

/// Measures with `rounds` rounds; only works whose names contain `only`.
pub fn measure(rounds: usize, only: &str, qemu: bool) -> Result<Report, Box<dyn Error>> {
    // Memory, where the host has such a directory: the medium is not what is measured.
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" })?;
    let image = dir.path().join("disk");
    fs::write(&image, pattern(IMAGE))?;
    let debian = Debian::open()?;
    let contents = Contents { disk: Some(Flavour::I686), fio: true, ..Contents::default() };
    let initrd = image::build(&debian, contents, dir.path())?;
    let append = "console=ttyS0 mitigations=off".to_owned();
    let guest = Guest { append, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    let mut places = Vec::new();
    let ours = [Contender::Bulkhead, Contender::BulkheadShared];
    for contender in ours.into_iter().chain([Contender::Qemu, Contender::QemuVhostUser]) {
        if qemu || ours.contains(&contender) {
            eprintln!("{contender:?}: booting");
            places.push(place(contender, &guest, &image)?);
        }
    }
    let memory = |places: &[Place]| {
        let seat = &places[0].seat;
        (seat.own_memory().unwrap_or(0), seat.page_tables().unwrap_or(0))
    };
    let before = memory(&places);
    let works = WORKS.iter().filter(|work| work.name.contains(only));
    let rows = works.map(|work| row(work, rounds, &mut places)).collect::<io::Result<_>>()?;
    let after = memory(&places);
    Ok(Report { rows, own_memory: [before.0, after.0], page_tables: [before.1, after.1] })
}

fn place(contender: Contender, guest: &Guest, image: &Path) -> Result<Place, Box<dyn Error>> {
    let monitor = match contender {
        Contender::Bulkhead | Contender::BulkheadShared => Monitor::Bulkhead { engine: None },
        Contender::Qemu | Contender::QemuVhostUser => Monitor::Qemu,
    };
    let (mut command, path) = (monitor.command(guest)?, image.display());
    let mut daemon = None;
    match contender {
        Contender::Bulkhead | Contender::BulkheadShared => {
            let dma = if contender == Contender::Bulkhead { "bounce" } else { "shared" };
            command.args(["--disk", &format!("path={path},format=raw,readonly=on,dma={dma}")]);
        }
        Contender::Qemu => {
            // Its locks conflict with other readers'.
            let file = format!("file.driver=file,file.filename={path},file.locking=off");
            command.args(["-drive", &format!("if=none,id=disk,format=raw,readonly=on,{file}")]);
            command.args(["-device", "virtio-blk-pci,drive=disk"]);
        }
        Contender::QemuVhostUser => {
            let served = daemon.insert(Daemon::start_qemu(image, true)?);
            let memory = guest.memory;
            command.args(["-object", &format!("memory-backend-memfd,id=ram,size={memory}M,share=on")]);
            command.args(["-machine", "pc,memory-backend=ram"]);
            command.args(["-chardev", &format!("socket,id=disk,path={}", served.socket.display())]);
            command.args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"]);
        }
    }
    let (seat, _) = Seat::take(monitor.launch(command)?)?;
    Ok(Place { contender, seat, _daemon: daemon })
}

fn row(work: &Work, rounds: usize, places: &mut [Place]) -> io::Result<Row> {
    eprintln!("{}", work.name);
    let mut rates: Vec<_> = places.iter().map(|place| (place.contender, Vec::new())).collect();
    for _ in 0..rounds.max(1) {
        for (place, (_, rates)) in places.iter_mut().zip(&mut rates) {
            rates.push(rate(work, &mut place.seat)?);
        }
    }
    Ok(Row { name: work.name, unit: work.unit, rates })
}

fn rate(work: &Work, seat: &mut Seat) -> io::Result<u64> {
    let line = format!(
        "fio --name=fio --filename=/dev/vda --readonly --direct=1 --ioengine=libaio {} --time_based --runtime={SECONDS} \
         --norandommap --output-format=terse --terse-version=3",
        work.arguments
    );
    let text = seat.shell(&line)?;
    let terse = text.lines().find(|line| line.starts_with("3;"));
    let rate = terse.and_then(|line| line.split(';').nth(work.field)?.parse().ok());
    rate.filter(|rate| *rate > 0).ok_or_else(|| io::Error::other(format!("fio gave no rate:\n{text}")))
}

impl Report {
    /// The table as text.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "disk, by fio in the guest, on an image in memory (goal: 2 x both of QEMU's; shared within 15 %)\n",
        );
        for row in &self.rows {
            let ours = row.rates.first().map_or(&[][..], |(_, rates)| rates);
            text += &format!("{:<20}", row.name);
            for (contender, rates) in &row.rates {
                let ratio = ratio(ours, rates).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
                let median = median(rates).unwrap_or(0);
                text += &format!("  {contender:?} {median} {} (x {ratio})", row.unit);
            }
            text.push('\n');
        }
        let [booted, worked] = self.own_memory.map(mebibytes);
        let [tables, tables_after] = self.page_tables.map(mebibytes);
        text + &format!(
            "all processes beside guest RAM: {booted} after boot, {worked} after this (goal: under 80 MiB); page tables \
             {tables} and {tables_after}\n"
        )
    }
}
