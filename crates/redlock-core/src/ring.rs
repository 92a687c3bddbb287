//! Which group of servers owns a key: consistent hashing with hashes whose bytes are specified, so
//! that two builds, machines or languages agree.

use md5::{Digest, Md5};
use twox_hash::XxHash3_64;

/// Points per group. The more there are, the more even the shares.
const REPLICAS: u32 = 512;

/// From this many groups on, Ketama points of different groups coincide.
const KETAMA_COLLIDES: usize = 12;

/// How keys are spread over several groups of servers.
///
/// All processes that share locks must use the same scheme and groups: otherwise they look for a
/// lock in different places, and both get it. With one group the scheme has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RingScheme {
    /// The default. A group's place depends on its name, not on its position in the list: groups
    /// can be listed in any order, and adding or removing one moves only the keys that it gains
    /// or loses.
    ///
    /// A group has 512 points: the 64-bit XXH3 of its name, a zero byte, and the number of the
    /// point as four bytes, little endian. A key is hashed by XXH3 as well, without the configured
    /// prefix, and belongs to the first point that is greater, or else to the first of all. Of
    /// equal points the group whose name is the smallest has the first.
    #[default]
    Xxh3,
    /// Bit for bit the placement of [lyokato/redlock](https://github.com/lyokato/redlock), so that
    /// Elixir services and this library can share locks.
    ///
    /// A group's place depends on its position in the list: list the groups in the same order
    /// everywhere. From 12 groups on the shares are uneven: of 16 groups, the second gets a sixth
    /// of what it should.
    Ketama,
}

/// The points of all groups.
#[derive(Debug)]
pub(crate) struct Ring {
    scheme: RingScheme,
    /// Hash and group, in the order in which ties are decided.
    points: Box<[(u64, usize)]>,
}

impl Ring {
    pub(crate) fn new(scheme: RingScheme, group_names: &[&str]) -> Self {
        let points = match (scheme, group_names.len()) {
            // Every key goes to the only group there is.
            (_, 0 | 1) => Vec::new(),
            (RingScheme::Xxh3, _) => xxh3_points(group_names),
            (RingScheme::Ketama, groups) => ketama_points(groups),
        };
        if scheme == RingScheme::Ketama && group_names.len() >= KETAMA_COLLIDES {
            tracing::warn!(
                groups = group_names.len(),
                "the Ketama ring spreads keys unevenly over {KETAMA_COLLIDES} and more groups; \
                 use RingScheme::Xxh3 unless Elixir services share these locks"
            );
        }
        Self { scheme, points: points.into() }
    }

    /// The index of the group that owns `key`, given without prefix.
    pub(crate) fn group_of(&self, key: &[u8]) -> usize {
        if self.points.is_empty() {
            return 0;
        }
        let hash = match self.scheme {
            RingScheme::Xxh3 => XxHash3_64::oneshot(key),
            RingScheme::Ketama => ketama_hash(key),
        };
        let next = self.points.partition_point(|&(point, _)| point <= hash);
        let (_, group) = self.points[next % self.points.len()];
        group
    }
}

fn xxh3_points(group_names: &[&str]) -> Vec<(u64, usize)> {
    let mut points = Vec::with_capacity(group_names.len() * REPLICAS as usize);
    for (group, name) in group_names.iter().enumerate() {
        for replica in 0..REPLICAS {
            let point = [name.as_bytes(), &[0], &replica.to_le_bytes()].concat();
            points.push((XxHash3_64::oneshot(&point), group));
        }
    }
    points.sort_unstable_by_key(|&(hash, group)| (hash, group_names[group]));
    points
}

/// The ring of `ExHashRing.HashRing` 3.0.0, as lyokato/redlock 1.0 uses it: its nodes are named
/// by position, nothing separates position and replica number, and its merge sort puts the group
/// that was added last in front of equal ones.
fn ketama_points(groups: usize) -> Vec<(u64, usize)> {
    let mut points = Vec::with_capacity(groups * REPLICAS as usize);
    for group in 0..groups {
        for replica in 0..REPLICAS {
            points.push((ketama_hash(format!("{group}{replica}").as_bytes()), group));
        }
    }
    points.sort_unstable_by_key(|&(hash, group)| (hash, std::cmp::Reverse(group)));
    points
}

fn ketama_hash(bytes: &[u8]) -> u64 {
    let digest = Md5::digest(bytes);
    let mut half = [0; 8];
    half.copy_from_slice(&digest[8..]);
    u64::from_le_bytes(half)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ketama(groups: usize) -> Ring {
        Ring::new(RingScheme::Ketama, &vec![""; groups])
    }

    fn xxh3<S: AsRef<str>>(names: &[S]) -> Ring {
        Ring::new(RingScheme::Xxh3, &names.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    #[test]
    fn ketama_hashes_like_elixir() {
        for (bytes, hash) in [
            ("foo", 15610818590157434861),
            ("bar", 17460787049009665627),
            ("example_key:42", 10094240359078297382),
            ("order:1001", 16082315976845679712),
            ("payment:9f8e", 12234653781872606682),
            ("日本語", 17017752086077517047),
            ("", 9098107892288553193),
            ("00", 8340792929752783391),
            ("10", 2371254956972334453),
            ("110", 4512553854264690378),
            ("0511", 9223326056729421266),
        ] {
            assert_eq!(ketama_hash(bytes.as_bytes()), hash, "{bytes}");
        }
    }

    #[test]
    fn ketama_places_keys_like_elixir() {
        let rings = [2, 3, 5, 12, 16].map(ketama);
        for (key, groups) in [
            ("foo", [0, 2, 2, 6, 6]),
            ("bar", [0, 2, 3, 3, 3]),
            ("example_key:42", [1, 1, 1, 10, 12]),
            ("order:1001", [0, 0, 4, 4, 4]),
            ("payment:9f8e", [1, 1, 3, 6, 6]),
            ("日本語", [0, 0, 0, 8, 8]),
            ("", [0, 0, 4, 4, 4]),
        ] {
            let placed = rings.each_ref().map(|ring| ring.group_of(key.as_bytes()));
            assert_eq!(placed, groups, "{key}");
        }
    }

    #[test]
    fn ketama_decides_ties_like_elixir() {
        assert_eq!(ketama(12).group_of(b"k73"), 11);
        assert_eq!(ketama(13).group_of(b"k67"), 12);
        assert_eq!(ketama(16).group_of(b"k28"), 14);
    }

    #[test]
    fn ketama_points_are_those_of_elixir() {
        let ring = ketama(3);
        assert_eq!(ring.points.first(), Some(&(16664934021113233, 1)));
        assert_eq!(ring.points.last(), Some(&(18442472687497949060, 2)));
        let next = ring.points.iter().find(|&&(hash, _)| hash > ketama_hash(b"foo"));
        assert_eq!(next, Some(&(15615281005579305321, 2)));
    }

    #[test]
    fn a_key_beyond_the_last_point_belongs_to_the_first() {
        for ring in [ketama(3), xxh3(&["a", "b", "c"])] {
            let hash = |key: &[u8]| match ring.scheme {
                RingScheme::Xxh3 => XxHash3_64::oneshot(key),
                RingScheme::Ketama => ketama_hash(key),
            };
            let last = ring.points.last().unwrap().0;
            let beyond = (0..1_000_000_u32).map(u32::to_le_bytes).find(|key| hash(key) >= last);
            assert_eq!(ring.group_of(&beyond.unwrap()), ring.points[0].1);
        }
    }

    #[test]
    fn one_group_owns_everything() {
        assert_eq!(ketama(1).group_of(b"foo"), 0);
        assert_eq!(xxh3(&["only"]).group_of(b"foo"), 0);
    }

    /// Computed with another implementation of XXH3, the reference one.
    #[test]
    fn xxh3_placement_is_frozen() {
        let rings = [
            xxh3(&["eu", "us"]),
            xxh3(&["eu", "us", "ap"]),
            xxh3(&["a:6379/0", "b:6379/0", "c:6379/0", "d:6379/0", "e:6379/0"]),
        ];
        for (key, groups) in [
            ("foo", [1, 1, 4]),
            ("bar", [1, 1, 3]),
            ("example_key:42", [1, 1, 2]),
            ("order:1001", [0, 0, 0]),
            ("order:43", [0, 2, 2]),
            ("order:44", [1, 1, 3]),
            ("order:45", [0, 2, 0]),
            ("日本語", [1, 1, 3]),
            ("", [1, 1, 3]),
            (&"x".repeat(300), [0, 2, 0]),
        ] {
            let placed = rings.each_ref().map(|ring| ring.group_of(key.as_bytes()));
            assert_eq!(placed, groups, "{key}");
        }
        assert_eq!(rings[1].points.first(), Some(&(7345870087384510, 2)));
        assert_eq!(rings[1].points.last(), Some(&(18443982798334856673, 0)));
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        prop::collection::btree_set("[a-z0-9.:,]{1,12}", 2..10)
            .prop_map(|names: BTreeSet<_>| names.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    }

    fn keys() -> impl Iterator<Item = String> {
        (0..4_000).map(|i| format!("order:{i}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn xxh3_shares_are_even(names in names()) {
            let ring = xxh3(&names);
            let mut shares = vec![0_usize; names.len()];
            for key in keys() {
                shares[ring.group_of(key.as_bytes())] += 1;
            }
            let ideal = keys().count() / names.len();
            for share in shares {
                prop_assert!((ideal * 7 / 10..ideal * 13 / 10).contains(&share), "{} of {}", share, ideal);
            }
        }

        #[test]
        fn the_order_of_groups_does_not_matter_to_xxh3(names in names()) {
            let mut sorted = names.clone();
            sorted.sort();
            let (ring, other) = (xxh3(&names), xxh3(&sorted));
            for key in keys() {
                let key = key.as_bytes();
                prop_assert_eq!(&names[ring.group_of(key)], &sorted[other.group_of(key)]);
            }
        }

        #[test]
        fn removing_a_group_moves_only_its_keys(names in names(), at: prop::sample::Index) {
            let mut fewer = names.clone();
            let removed = fewer.remove(at.index(names.len()));
            let (ring, other) = (xxh3(&names), xxh3(&fewer));
            for key in keys() {
                let key = key.as_bytes();
                let owner = &names[ring.group_of(key)];
                if *owner != removed {
                    prop_assert_eq!(owner, &fewer[other.group_of(key)]);
                }
            }
        }

        #[test]
        fn every_key_has_an_owner(groups in 1_usize..40, key: Vec<u8>) {
            prop_assert!(ketama(groups).group_of(&key) < groups);
        }
    }
}
