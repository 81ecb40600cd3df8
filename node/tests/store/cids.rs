//! CIDs equal those of other importers. Expected values are from ipfs-unixfs-importer 17.1.1 (Helia's importer) with
//! CID version 1, raw leaves, a single leaf as its own root, and the balanced layout.

use accel_node::store::{AddOptions, Chunker};

use crate::node::{self, data};

const UNIXFS_2025: Chunker = Chunker::UNIXFS_2025;
const COMPATIBLE: Chunker = Chunker::COMPATIBLE;
/// Three children a node, so that a small file has several levels.
const DEEP: Chunker = Chunker::Fixed { chunk_bytes: 1024, links: 3 };

const FILES: &[(Chunker, u64, &str)] = &[
    (UNIXFS_2025, 0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
    (UNIXFS_2025, 1, "bafkreihhvqdymzuob7ypak3cxucpix7wg36yfw3dweiemaojoxoaaxz2m4"),
    (UNIXFS_2025, 1_048_575, "bafkreiaw5qpgr44za6ui7go3tqt6ajb227x2kdxl5kzzgl6clcsqw5r7cu"),
    (UNIXFS_2025, 1_048_576, "bafkreiheygkqfryefff2zsxncstsd4vvbrjj2shdq2v74d4wrxbe27ebcq"),
    (UNIXFS_2025, 1_048_577, "bafybeigvpxhyfecmfzc3b2bxkqvsetf7lkpqxp4aavcn3rywbw6twnr3f4"),
    (UNIXFS_2025, 5_242_880, "bafybeiaqagxfepysntrng5gxh4gfgjlgmi7oaduvkfbvxeskk73ukyglp4"),
    (UNIXFS_2025, 17_838_137, "bafybeidcdhazdcub2ekbytgfhrrtuvh5xlw5olm25w6izyksb7q6awrcli"),
    (COMPATIBLE, 0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
    (COMPATIBLE, 262_145, "bafybeiecu63kwdfc4bydqke5xld32dtrfbpmxt3ezc2r7rlc5ccfiqaufe"),
    (COMPATIBLE, 45_613_056, "bafybeib35y2myqnk4xjduijqn4k3gwc6x3golnmsyjcl25t4tqf2i3xmha"),
    (COMPATIBLE, 45_613_057, "bafybeiefo6bzvapjgbsrint2bhuvqobzybvpw3ifs54bl4et7x3kvet7cu"),
    (COMPATIBLE, 94_371_847, "bafybeih4lqldbhdt7zpiid3xfmmekujvhibhmf5znpm567xjwm43y4i2qm"),
    (DEEP, 9216, "bafybeibm264myf2ggrlxdkjhrv5kpd6chm6bbih474jk4nod7pdkxjitvi"),
    (DEEP, 9217, "bafybeihmqmfxzwiax75hclvaqipbjh6gucbw4r47cd7vpbwlfbrxiwun5q"),
    (DEEP, 27_648, "bafybeigxwkoib7rfspwcwdi2sz2rnpcpjfdz3j2a7j5f4cfweewhrxiiiq"),
    (DEEP, 27_649, "bafybeig5z7dhrxm5khj3gijrhibejztiwm53t4ehbnphrczaiyhr5ihqai"),
    (DEEP, 102_400, "bafybeidljaj5yw4uzxvf5wckochqiahu3hpjouibqkcwpzpduiztgg6b6m"),
];

const DIRECTORIES: &[(Chunker, &str)] = &[
    (UNIXFS_2025, "bafybeible3cfqui3s5i26il6l7zsorjhgqbef3hnin5y3kdvp5wswlbqpy"),
    (COMPATIBLE, "bafybeibyhuaeoxjqinunbnbybkfjsfimjacxacozsgqqzqg47qew44qnka"),
    (DEEP, "bafybeihtwgvd4pf6zu3z5gbaob6s74toh5fdqhgxtiqd4wtzlceeheie5a"),
];

#[tokio::test(flavor = "multi_thread")]
async fn files_have_the_cids_of_other_importers() {
    let node = node::start().await;
    for &(chunker, bytes, expected) in FILES {
        let path = node.write("file", &data(bytes + 1, bytes));
        let report = node.add(&path, AddOptions { chunker, ..AddOptions::default() }).await.unwrap();
        assert_eq!(report.root.cid.to_string(), expected, "{bytes} bytes, {chunker:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_have_the_cids_of_other_importers() {
    let node = node::start().await;
    for &(chunker, expected) in DIRECTORIES {
        for (name, bytes) in [("a.txt", 3), ("config.json", 100), ("sub/b.bin", 3 << 20), ("sub/zero", 0)] {
            node.write(&format!("tree/{name}"), &data(bytes + 1, bytes));
        }
        let path = node.directory.path().join("sources/tree");
        let report = node.add(&path, AddOptions { chunker, ..AddOptions::default() }).await.unwrap();
        assert_eq!(report.root.cid.to_string(), expected, "{chunker:?}");
    }
}
