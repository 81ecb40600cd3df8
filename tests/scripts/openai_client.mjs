// OpenAI's own client for Node.js against a node, of which only address, key and model were changed.
//
// Reads [ADDRESS, KEY, MODEL] as JSON from standard input and prints what it was answered as one JSON object.

import { readFileSync } from 'node:fs'
import OpenAI from 'openai'

const [address, apiKey, model] = JSON.parse(readFileSync(0, 'utf8'))
const client = new OpenAI({ baseURL: `http://${address}/v1`, apiKey, maxRetries: 0 })
const messages = [{ role: 'user', content: 'What is the capital of France?' }]
const found = {}

found.models = []
for await (const one of client.models.list()) found.models.push(one.id)

const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 32 })
found.whole = whole.choices[0].message.content
found.usage = whole.usage

found.streamed = ''
const pieces = await client.chat.completions.create({
  model, messages, temperature: 0, max_tokens: 32, stream: true, stream_options: { include_usage: true }
})
for await (const piece of pieces) {
  found.streamed += piece.choices[0]?.delta?.content ?? ''
  found.stream_usage = piece.usage
}

// An answer that nobody reads any more ends: the job is cancelled.
const long = await client.chat.completions.create({ model, messages, max_tokens: 4096, stream: true })
for await (const piece of long) {
  if (piece.choices[0]?.delta?.content) break
}

try {
  await client.chat.completions.create({ model: 'nobody-has-this', messages })
} catch (error) {
  found.refused = [error.constructor.name, error.status, error.code]
}
console.log(JSON.stringify(found))
