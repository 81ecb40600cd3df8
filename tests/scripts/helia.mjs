// Helia as a peer on loopback, its blocks in memory.
//
// Prints where it listens, and then answers each request on standard input. Requests and answers are one line of JSON:
//
//     ["connect", ADDRESS]              connects to a peer
//     ["add", PATH]                     imports a file or directory as Helia does by default; its CID
//     ["add", PATH, CHUNK_BYTES, LINKS] the same with leaves of that size and nodes of so many links
//     ["get", CID, PATH]                downloads to PATH; seconds that the call took
//     ["pack", CID, PATH]               writes all blocks under CID into a CAR file
//     ["unpack", PATH]                  imports a CAR file; the CIDs of its roots
//
// An answer is {"ok": …} or {"error": …}. When standard input ends, so does the process, whatever it is doing.

import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { createInterface } from 'node:readline'
import { pipeline } from 'node:stream/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { withBitswap } from '@helia/bitswap'
import { car } from '@helia/car'
import { withLibp2pLight } from '@helia/libp2p'
import { globSource, unixfs } from '@helia/unixfs'
import { CarReader } from '@ipld/car'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'

const helia = withBitswap(withLibp2pLight(createHeliaLight(), {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
}))
await helia.start()
const files = unixfs(helia)

const requests = {
  address: async () => helia.libp2p.getMultiaddrs()[0].toString(),

  async connect (address) {
    await helia.libp2p.dial(multiaddr(address))
    return null
  },

  async add (path, chunkBytes, links) {
    const cut = chunkBytes && { chunker: fixedSize({ chunkSize: chunkBytes }), layout: balanced({ maxChildrenPerNode: links }) }
    if ((await stat(path)).isFile()) {
      return String(await files.addByteStream(createReadStream(path), cut))
    }
    let root
    for await (const entry of files.addAll(globSource(path, '**/*'), { ...cut, wrapWithDirectory: true })) {
      root = entry.cid
    }
    return String(root)
  },

  async get (cid, path) {
    const started = performance.now()
    await download(CID.parse(cid), path)
    return (performance.now() - started) / 1000
  },

  async pack (cid, path) {
    await pipeline(car(helia).export(CID.parse(cid)), createWriteStream(path))
    return null
  },

  async unpack (path) {
    const reader = await CarReader.fromIterable(createReadStream(path))
    await car(helia).import(reader)
    return (await reader.getRoots()).map(String)
  }
}

async function download (cid, path) {
  const { type } = await files.stat(cid)
  if (type !== 'directory') {
    return pipeline(files.cat(cid), createWriteStream(path))
  }
  await mkdir(path)
  for await (const entry of files.ls(cid)) {
    await download(entry.cid, join(path, basename(entry.name)))
  }
}

async function answer (name, ...rest) {
  const outcome = await requests[name](...rest).then(ok => ({ ok }), error => ({ error: String(error) }))
  process.stdout.write(JSON.stringify(outcome) + '\n')
}

await answer('address')
let last = Promise.resolve()
createInterface({ input: process.stdin })
  .on('line', line => { last = last.then(() => answer(...JSON.parse(line))) })
  .on('close', () => process.exit())
