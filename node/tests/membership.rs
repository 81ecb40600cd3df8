//! Invites as words, and the membership that is kept of them.

#![expect(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use accel_node::membership::{
    self, ADDRESSES, CHARACTERS, Invite, InviteError, MemberAddress, Membership, MembershipError, PREFIX, SwarmKey,
    listening, reachable,
};
use libp2p::PeerId;
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000;

fn member(address: &str) -> MemberAddress {
    MemberAddress::new(PeerId::random(), address.parse().unwrap()).unwrap()
}

fn invite() -> Invite {
    Invite {
        name: "lab".parse().unwrap(),
        key: SwarmKey([7; 32]),
        bootstrap: vec![member("192.0.2.7:4601"), member("[2001:db8::7]:4601")],
        expires_unix: NOW + 60,
    }
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let v4 = (1_u8..=223, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
    let v6 = any::<[u16; 7]>().prop_map(|[b, c, d, e, f, g, h]| Ipv6Addr::new(0x2001, b, c, d, e, f, g, h).into());
    prop_oneof![v4, v6]
}

fn invites() -> impl Strategy<Value = Invite> {
    let member = (ip(), 1_u16.., any::<[u8; 32]>()).prop_map(|(ip, port, seed)| {
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes(seed).unwrap();
        MemberAddress::new(keypair.public().to_peer_id(), SocketAddr::new(ip, port)).unwrap()
    });
    let members = proptest::collection::vec(member, 1..=ADDRESSES);
    ("[A-Za-z0-9._-]{1,32}", any::<[u8; 32]>(), members, any::<u64>()).prop_map(
        |(name, key, bootstrap, expires_unix)| Invite {
            name: name.parse().unwrap(),
            key: SwarmKey(key),
            bootstrap,
            expires_unix,
        },
    )
}

proptest! {
    #[test]
    fn an_invite_comes_back_from_its_word(invite in invites()) {
        let word = invite.to_word().unwrap();
        let plain = word.strip_prefix(PREFIX).unwrap().bytes().all(|byte| byte.is_ascii_alphanumeric());
        prop_assert!(plain && word.len() <= CHARACTERS, "{word}");
        prop_assert_eq!(&Invite::from_word(&word).unwrap(), &invite);
        prop_assert_eq!(Invite::from_word(&format!(" {word}\r\n")).unwrap(), invite);
    }

    #[test]
    fn a_word_with_another_character_anywhere_is_no_invite(
        invite in invites(),
        place in any::<prop::sample::Index>(),
        other in any::<char>(),
    ) {
        let word = invite.to_word().unwrap();
        let place = place.index(word.len());
        prop_assume!(word.as_bytes()[place] as char != other);
        // White space at an end is no part of the word; it cuts the word short there all the same.
        let changed = format!("{}{other}{}", &word[..place], &word[place + 1..]);
        prop_assert!(Invite::from_word(&changed).is_err(), "{changed}");
    }

    #[test]
    fn a_word_that_is_cut_off_or_swapped_is_no_invite(invite in invites(), place in any::<prop::sample::Index>()) {
        let word = invite.to_word().unwrap();
        let place = place.index(word.len());
        prop_assert!(Invite::from_word(&word[..place]).is_err());
        let mut swapped = word.clone().into_bytes();
        let next = (place + 1) % swapped.len();
        prop_assume!(swapped[place] != swapped[next]);
        swapped.swap(place, next);
        prop_assert!(Invite::from_word(&String::from_utf8(swapped).unwrap()).is_err());
    }

    #[test]
    fn a_strangers_word_is_refused(word in ".{0,300}", bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let plausible = format!("{PREFIX}{word}");
        let well_encoded = format!("{PREFIX}{}", bs58::encode(bytes).into_string());
        for word in [word, plausible, well_encoded] {
            prop_assert!(Invite::from_word(&word).is_err(), "{}", word);
        }
    }
}

#[test]
fn what_is_wrong_with_a_word_is_told() {
    let word = invite().to_word().unwrap();
    let wrong = |word: &str| Invite::from_word(word).unwrap_err();
    assert!(matches!(wrong(""), InviteError::NotOne));
    assert!(matches!(wrong("hello"), InviteError::NotOne));
    assert!(matches!(wrong(&word.replacen("accel1", "accel2", 1)), InviteError::OtherFormat));
    assert!(matches!(wrong(PREFIX), InviteError::Mistyped));
    assert!(matches!(wrong(&word[..word.len() - 1]), InviteError::Mistyped));
    assert!(matches!(wrong(&word.to_lowercase()), InviteError::Mistyped));
    assert!(matches!(wrong(&format!("{word} {word}")), InviteError::Mistyped));
    assert!(matches!(wrong(&format!("{PREFIX}{}", "2".repeat(100_000_000))), InviteError::TooLong));

    let many = Invite { bootstrap: vec![member("192.0.2.7:4601"); ADDRESSES + 1], ..invite() };
    assert!(matches!(many.to_word().unwrap_err(), InviteError::Content(_)));
    let nobody = Invite { bootstrap: Vec::new(), ..invite() };
    assert!(matches!(nobody.to_word().unwrap_err(), InviteError::Content(_)));
}

#[test]
fn an_invite_ends_at_its_time_and_says_since_when() {
    let invite = invite();
    invite.check_expiry(invite.expires_unix - 1).unwrap();
    let after = |seconds: u64| invite.check_expiry(invite.expires_unix + seconds).unwrap_err().to_string();
    assert!(after(0).contains("expired 0 s ago"), "{}", after(0));
    assert!(after(3 * 3600 + 5).contains("expired 3 h 5 s ago"), "{}", after(3 * 3600 + 5));
    assert!(after(90_061).contains("expired 1 d 1 h ago"), "{}", after(90_061));
}

#[test]
fn names_and_addresses_that_reach_nobody_are_refused() {
    for name in ["", "two words", "a\u{1b}[31m", "schön", &"a".repeat(33)] {
        assert!(name.parse::<membership::SwarmName>().is_err(), "{name:?}");
    }
    let id = PeerId::random();
    for address in
        ["0.0.0.0:1", "192.0.2.7:0", "224.0.0.251:5353", "255.255.255.255:1", "[::]:1", "[ff02::1]:1", "[fe80::1]:1"]
    {
        assert!(MemberAddress::new(id, address.parse().unwrap()).is_err(), "{address}");
    }
    for (address, is_one) in [
        ("/ip4/192.0.2.7/tcp/4601", true),
        (&format!("/ip4/192.0.2.7/tcp/4601/p2p/{id}"), true),
        ("/ip4/192.0.2.7/udp/4601/quic-v1", false),
        ("/ip4/192.0.2.7/tcp/4601/ws", false),
        ("/dns4/example.com/tcp/4601", false),
        (&format!("/ip4/192.0.2.7/tcp/4601/p2p/{id}/p2p-circuit"), false),
    ] {
        assert_eq!(MemberAddress::parse(&address.parse().unwrap(), Some(id)).is_ok(), is_one, "{address}");
    }
    assert!(MemberAddress::parse(&"/ip4/192.0.2.7/tcp/4601".parse().unwrap(), None).is_err());
}

#[test]
fn an_invite_names_real_addresses_first_and_loopback_only_alone() {
    let id = PeerId::random();
    let own: Vec<IpAddr> = ["127.0.0.1", "169.254.1.1", "192.0.2.7", "::1", "fe80::1", "2001:db8::7"]
        .iter()
        .map(|ip| ip.parse().unwrap())
        .collect();
    let told = |listen: &[&str]| -> Vec<String> {
        let listen: Vec<_> = listen.iter().map(|address| address.parse().unwrap()).collect();
        reachable(listening(id, &listen, &own)).iter().map(|member| member.address.to_string()).collect()
    };
    assert_eq!(told(&["/ip4/0.0.0.0/tcp/1", "/ip4/0.0.0.0/udp/1/quic-v1"]), ["192.0.2.7:1", "169.254.1.1:1"]);
    assert_eq!(told(&["/ip6/::/tcp/1", "/ip4/127.0.0.1/tcp/2"]), ["[2001:db8::7]:1"]);
    assert_eq!(told(&["/ip4/127.0.0.1/tcp/2", "/ip4/127.0.0.1/tcp/2"]), ["127.0.0.1:2"]);
    assert!(told(&["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/1/quic-v1"]).is_empty());
}

#[test]
fn a_membership_is_kept_for_its_owner_and_changed_only_on_purpose() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (first.path(), second.path());
    assert!(Membership::load(first).unwrap().is_none());
    assert!(matches!(membership::leave(first).unwrap_err(), MembershipError::InNone));
    assert!(matches!(membership::rotate_key(first).unwrap_err(), MembershipError::InNone));

    let created = membership::create(first, "lab".parse().unwrap()).unwrap();
    assert_eq!(Membership::load(first).unwrap().unwrap(), created);
    let mode = std::fs::metadata(first.join("swarm.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(
        membership::create(first, "two".parse().unwrap()).unwrap_err(),
        MembershipError::InAnother { name } if name == created.name
    ));
    assert!(matches!(created.invite(Vec::new(), NOW).unwrap_err(), MembershipError::NoAddress));

    // A stranger needs a live invite; a member renews addresses by any.
    let invited = created.invite(vec![member("192.0.2.7:4601"), member("127.0.0.1:4601")], NOW).unwrap();
    assert_eq!(invited.bootstrap.len(), 1);
    assert!(matches!(
        membership::join(second, &invited, NOW).unwrap_err(),
        MembershipError::Invite(InviteError::Expired { .. })
    ));
    assert!(Membership::load(second).unwrap().is_none());
    let joined = membership::join(second, &invited, NOW - 1).unwrap();
    assert_eq!((&joined.key, &joined.bootstrap), (&created.key, &invited.bootstrap));
    let moved = Invite { bootstrap: vec![member("192.0.2.8:4601")], ..invited.clone() };
    assert_eq!(membership::join(second, &moved, NOW + 9).unwrap().bootstrap, moved.bootstrap);

    // An invite from there names its own machine first, then whom it joined by, up to the most.
    let many: Vec<_> = (1..=ADDRESSES).map(|n| member(&format!("192.0.2.{n}:1"))).collect();
    let invited = joined.invite(many.clone(), NOW).unwrap();
    assert_eq!(invited.bootstrap, many);
    let invited = joined.invite(many[..1].to_vec(), NOW).unwrap();
    assert_eq!(invited.bootstrap, [&many[..1], &joined.bootstrap[..]].concat());

    let rotated = membership::rotate_key(first).unwrap();
    assert_ne!(rotated.key, created.key);
    let other = rotated.invite(many.clone(), NOW + 60).unwrap();
    assert!(matches!(membership::join(second, &other, NOW).unwrap_err(), MembershipError::OtherKey { .. }));
    let other = Invite { name: "other".parse().unwrap(), ..other };
    assert!(matches!(membership::join(second, &other, NOW).unwrap_err(), MembershipError::InAnother { .. }));
    assert_eq!(membership::leave(second).unwrap().name, created.name);
    assert_eq!(membership::join(second, &other, NOW).unwrap().key, rotated.key);
}

#[test]
fn nothing_that_is_printed_shows_the_key() {
    let invite = invite();
    let directory = tempfile::tempdir().unwrap();
    let joined = membership::join(directory.path(), &invite, NOW).unwrap();
    let printed = format!("{invite:?} {joined:?} {:?}", joined.key);
    assert!(!printed.contains("7, 7") && !printed.contains("0707"), "{printed}");

    // Nor what is wrong with a file.
    let path = directory.path().join("swarm.json");
    let secret = "verysecretverysecret";
    for text in [
        format!("{{\"name\": \"lab\", \"key\": [\"{secret}\"], \"bootstrap\": []}}"),
        format!("{{\"name\": \"lab\", \"key\": \"{secret}\", \"bootstrap\": []}}"),
        format!("{{\"{secret}\": \"lab\"}}"),
        "x".repeat(100_000),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Membership::load(directory.path()).unwrap_err().to_string();
        assert!(error.contains("swarm.json") && !error.contains(secret), "{error}");
    }
}
