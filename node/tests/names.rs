//! What a peer says of its names cannot be changed by whoever passes it on.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, helpers included")]

use accel_node::names::{sign, verify};
use accel_protocol::limits::NAME_LIFE_MS;
use accel_protocol::{ModelName, ModelRef};
use libp2p::identity::Keypair;
use proptest::prelude::*;

const NOW: u64 = 1_700_000_000_000;

fn name() -> ModelName {
    "smollm2:135m".parse().unwrap()
}

fn model() -> ModelRef {
    "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse().unwrap()
}

#[test]
fn who_asks_gets_what_the_peer_said() {
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let told = sign(&keypair, &name(), &model(), NOW).unwrap();
    let record = verify(&told, peer, &name(), NOW).unwrap();
    assert_eq!((record.name, record.model, record.signed_unix_ms), (name(), model(), NOW));
    // To whom it is said, of what, and for how long.
    let other = Keypair::generate_ed25519();
    assert!(verify(&told, other.public().to_peer_id(), &name(), NOW).is_err());
    assert!(verify(&told, peer, &"smollm2:360m".parse().unwrap(), NOW).is_err());
    assert!(verify(&told, peer, &name(), NOW + NAME_LIFE_MS - 1).is_ok());
    assert!(verify(&told, peer, &name(), NOW + NAME_LIFE_MS).is_err());
    assert!(verify(&told, peer, &name(), NOW - 2 * NAME_LIFE_MS).is_err());
    let by_another = sign(&other, &name(), &model(), NOW).unwrap();
    assert!(verify(&by_another, peer, &name(), NOW).is_err());
}

proptest! {
    #[test]
    fn a_changed_byte_is_noticed(part in 0..3_usize, place in any::<prop::sample::Index>(), flipped in 1..=255_u8) {
        let keypair = Keypair::generate_ed25519();
        let mut told = sign(&keypair, &name(), &model(), NOW).unwrap();
        let bytes = match part {
            0 => &mut told.record,
            1 => &mut told.key,
            _ => &mut told.signature,
        };
        let place = place.index(bytes.len());
        bytes[place] ^= flipped;
        prop_assert!(verify(&told, keypair.public().to_peer_id(), &name(), NOW).is_err());
    }

    #[test]
    fn any_text_is_a_name_or_an_error(text in "\\PC{0,40}") {
        if let Ok(name) = text.parse::<ModelName>() {
            prop_assert_eq!(name.as_str().parse::<ModelName>().unwrap(), name.clone());
            prop_assert!(name.as_str().parse::<ModelRef>().is_err());
            prop_assert_eq!(format!("{name}:latest").parse::<ModelName>().unwrap(), name);
        }
    }
}
