/** The load, in a process of its own: runs each slice that arrives over IPC and answers with its result. */
import { randomUUID } from 'node:crypto';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import pg from 'pg';
import { connectHttp } from './load-http.ts';
import type { RpcWork, Slice, SliceResult, SqlWork, Step } from './protocol.ts';

interface Ready {
  /** One operation of one slot; false: there is no more to do. Throws what went wrong. */
  operation: (slot: number) => Promise<boolean>;
  carry: string[];
  slots: number;
  close(): Promise<void> | void;
}

/** Streams that share one connection; a single one for all would be the bottleneck instead of the broker. */
const callsPerChannel = 16;
const callTimeout = 30_000;
const keptMessages = 5;
let sequence = 0;

process.on('message', (slice: Slice) => {
  run(slice).then(
    (result) => process.send!(result),
    (error: unknown) => {
      process.stderr.write(`load: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
      process.exit(1);
    },
  );
});
process.once('disconnect', () => process.exit(0));
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined);

async function run({ work, concurrency, seconds }: Slice): Promise<SliceResult> {
  const ready = await connect(work, concurrency);
  try {
    return await measure(ready, seconds);
  } finally {
    await ready.close();
  }
}

async function connect(work: Slice['work'], concurrency: number): Promise<Ready> {
  switch (work.kind) {
    case 'rpc':
      return await connectRpc(work, concurrency);
    case 'sql':
      return await connectSql(work, concurrency);
    case 'http':
      return { ...connectHttp(work, callTimeout), slots: concurrency, carry: [] };
  }
}

async function measure({ operation, carry, slots }: Ready, seconds: number): Promise<SliceResult> {
  const latencies: number[] = [];
  const messages: string[] = [];
  let errors = 0;
  const before = process.cpuUsage();
  const startedAt = performance.now();
  const until = startedAt + seconds * 1_000;
  const one = async (slot: number): Promise<void> => {
    for (let at = performance.now(); at < until; at = performance.now()) {
      try {
        if (!(await operation(slot))) return;
        latencies.push(performance.now() - at);
      } catch (error) {
        errors += 1;
        if (messages.length < keptMessages) messages.push(error instanceof Error ? error.message : String(error));
      }
    }
  };
  await Promise.all(Array.from({ length: slots }, (_, slot) => one(slot)));
  const elapsedMs = performance.now() - startedAt;
  const { user, system } = process.cpuUsage(before);
  return { latencies: Float64Array.from(latencies), errors, messages, elapsedMs, cpu: (user + system) / 1e6, carry };
}

async function connectRpc(work: RpcWork, slots: number): Promise<Ready> {
  const channels = Array.from({ length: Math.ceil(slots / callsPerChannel) }, () => {
    return new Client(`127.0.0.1:${work.port}`, credentials.createInsecure(), {
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_channelz': 0,
      'grpc.enable_retries': 0,
    });
  });
  await Promise.all(
    channels.map(
      (channel) =>
        new Promise<void>((resolve, reject) => {
          channel.waitForReady(Date.now() + callTimeout, (error) => (error ? reject(error) : resolve()));
        }),
    ),
  );
  const carry = Array.from({ length: slots }, (_, slot) => work.carry[slot] ?? '');
  const shared = work.tokens.length === 1 ? bearer(work.tokens[0]!) : undefined;
  let nextToken = 0;
  return {
    slots,
    carry,
    close: () => channels.forEach((channel) => channel.close()),
    operation: async (slot) => {
      if (shared === undefined && nextToken >= work.tokens.length) return false;
      const metadata = shared ?? bearer(work.tokens[nextToken++]!);
      for (const step of work.steps) {
        const answer = await call(channels[slot % channels.length]!, step, request(step, carry[slot]!), metadata);
        if (step.take !== undefined) carry[slot] = take(answer, step.take);
      }
      return true;
    },
  };
}

function request(step: Step, carry: string): Buffer {
  const bytes = Buffer.from(step.template);
  if (step.requestIdAt !== undefined) bytes.write(randomUUID(), step.requestIdAt, 'latin1');
  if (step.carryAt !== undefined) bytes.write(carry, step.carryAt, 'latin1');
  return bytes;
}

function call(channel: Client, step: Step, bytes: Buffer, metadata: Metadata): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    channel.makeUnaryRequest(
      step.path,
      same,
      same,
      bytes,
      metadata,
      { deadline: Date.now() + callTimeout },
      (error, answer) => {
        if (error) reject(new Error(`${step.path}: ${error.message}`));
        else resolve(answer!);
      },
    );
  });
}

const same = (bytes: Buffer): Buffer => bytes;

/** `<prefix>` and 32 hexadecimal digits: the answers' first identifier of a kind is the one that they are about. */
function take(answer: Buffer, prefix: string): string {
  const at = answer.indexOf(prefix, 0, 'latin1');
  if (at < 0) throw new Error(`the answer holds no ${prefix} identifier`);
  return answer.toString('latin1', at, at + prefix.length + 32);
}

function bearer(token: string): Metadata {
  const metadata = new Metadata();
  metadata.set('authorization', `Bearer ${token}`);
  return metadata;
}

async function connectSql(work: SqlWork, concurrency: number): Promise<Ready> {
  const slots = Math.min(concurrency, work.connections ?? concurrency);
  const clients = Array.from(
    { length: slots },
    () => new pg.Client({ connectionString: work.url, query_timeout: callTimeout }),
  );
  for (const client of clients) client.on('error', () => undefined);
  await Promise.all(clients.map((client) => client.connect()));
  return {
    slots,
    carry: [],
    close: async () => void (await Promise.all(clients.map((client) => client.end()))),
    operation: async (slot) => {
      sequence += 1;
      await clients[slot]!.query(work.text.replaceAll('{{n}}', String(sequence)));
      return true;
    },
  };
}
