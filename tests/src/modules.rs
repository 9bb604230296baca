//! Kernel modules for the guest: the wanted ones and what they depend on, with the order in which to load them.
//!
//! A package's modules come without the index that modprobe needs, which is made when a kernel is installed. But each
//! module names the modules it depends on, in its `.modinfo` section, as the text `depends=a,b`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::initramfs::Initramfs;

/// Adds the modules `wanted` and their dependencies, from the directory `objects`, to `modules/` in the image, and
/// `modules/order`: their file names in an order in which insmod can load them.
pub fn add(image: &mut Initramfs, objects: &Path, wanted: &[&str]) -> io::Result<()> {
    let mut loaded = Vec::new();
    let mut content = BTreeMap::new();
    for name in wanted {
        visit(name, objects, &mut loaded, &mut content)?;
    }
    for (name, bytes) in &content {
        image.file(&format!("modules/{name}.ko"), 0o644, bytes)?;
    }
    let order: String = loaded.iter().map(|name| format!("{name}.ko\n")).collect();
    image.file("modules/order", 0o644, order.as_bytes())
}

/// Depth first: a module comes after all that it depends on. The kernel's dependencies have no cycles.
fn visit(
    name: &str,
    objects: &Path,
    loaded: &mut Vec<String>,
    content: &mut BTreeMap<String, Vec<u8>>,
) -> io::Result<()> {
    if content.contains_key(name) {
        return Ok(());
    }
    let path = objects.join(format!("{name}.ko"));
    let bytes = fs::read(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    let needed = dependencies(&bytes);
    content.insert(name.to_owned(), bytes);
    for dependency in needed {
        visit(&dependency, objects, loaded, content)?;
    }
    loaded.push(name.to_owned());
    Ok(())
}

fn dependencies(module: &[u8]) -> Vec<String> {
    let entry = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(entry.unwrap_or_default()).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_load_first() {
        let dir = tempfile::tempdir().unwrap();
        for (name, depends) in [("a", "b,c"), ("b", "c"), ("c", ""), ("d", "a")] {
            fs::write(dir.path().join(format!("{name}.ko")), format!("\u{7f}ELF\0license=GPL\0depends={depends}\0x"))
                .unwrap();
        }
        let (mut loaded, mut content) = (Vec::new(), BTreeMap::new());
        visit("a", dir.path(), &mut loaded, &mut content).unwrap();
        visit("d", dir.path(), &mut loaded, &mut content).unwrap();
        assert_eq!(loaded, ["c", "b", "a", "d"]);
        assert!(visit("missing", dir.path(), &mut loaded, &mut content).is_err());
    }
}
