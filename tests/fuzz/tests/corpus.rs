//! The seeds hold, and so do their pieces.

use std::path::Path;

use culvert_fuzz::TARGETS;

#[test]
fn every_target_has_seeds_and_every_seed_holds() {
    for (name, check) in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let seeds: Vec<Vec<u8>> = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert!(seeds.len() >= 3, "{name}: too few seeds");
        for seed in &seeds {
            check(seed);
            for cut in 0..seed.len() {
                check(&seed[..cut]);
                check(&seed[cut..]);
                for byte in [0, b' ', b'\r', b'\n', b'%', b'/', 0xff] {
                    let mut spoilt = seed.clone();
                    spoilt[cut] = byte;
                    check(&spoilt);
                }
            }
        }
    }
}
