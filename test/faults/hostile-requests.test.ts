import {
  create,
  type DescField,
  type DescMessage,
  type DescMethod,
  type DescMethodStreaming,
  type DescMethodUnary,
  type Message,
} from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { brokerRows, callers, editConfig, editPolicy, openTask, reportsRead } from './support.ts';

/** Fault 21, with the real handlers: whatever is asked by whoever may ask everything, no answer is a defect. */
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let token: string;
let known: Record<string, string>;
const methods = [AdminService, AuditService, CredentialService, RevocationService, TaskService].flatMap(
  (service) => service.methods,
);

beforeAll(async () => {
  estate = await createEstate('hostile');
  await editConfig(estate, (config) => {
    Object.assign(config['server']!, { limits: { callsPerSecond: 1_000_000, burst: 1_000_000, maxStreams: 1_000 } });
    (config['access'] as unknown as object[]).push({
      workloads: ['spiffe://dev.leasehold.test/all'],
      roles: ['orchestrator', 'operator', 'auditor', 'resource_server'],
    });
  });
  await editPolicy(estate, 'agents.yaml', (text) =>
    text.replace(
      '[spiffe://dev.leasehold.test/agent/analyst]',
      '[spiffe://dev.leasehold.test/agent/analyst, spiffe://dev.leasehold.test/all]',
    ),
  );
  broker = await startInProcess(estate);
  token = await estate.mint('all');
});
afterAll(async () => {
  await broker?.stop();
  await estate?.remove();
});

/** A request that could be meant, with ids of things that exist. */
function plausible(method: DescMethod): Record<string, unknown> {
  const values: Record<string, unknown> = {
    intent: 'hostile',
    agent: 'analyst',
    tools: [{ $typeName: 'leasehold.v1.ToolAccess', tool: 'reports', tier: 1 }],
    tool: 'reports',
    tier: 1,
    ...known,
  };
  return Object.fromEntries(
    method.input.fields.flatMap((field) => {
      if (field.localName === 'requestId') return [['requestId', crypto.randomUUID()]];
      // ListTasks and ListLeases narrow by these; the rest is asked without.
      const value = method.name.startsWith('List') ? undefined : values[field.localName];
      return value === undefined ? [] : [[field.localName, value]];
    }),
  );
}

const strings = [
  '',
  'x',
  'x'.repeat(63),
  'x'.repeat(2_000),
  'x'.repeat(4_096),
  'x'.repeat(4_097),
  'x'.repeat(100_000),
  '\u0000',
  'a\u0000b',
  '\u202e\u0007\u001b[31m',
  '😀'.repeat(1_024),
  `tsk_${'0'.repeat(32)}`,
  `lse_${'f'.repeat(32)}`,
  '../../etc/passwd',
  "'; DROP TABLE tasks; --",
  '{{role}}',
  '__proto__',
  'constructor',
  '00000000-0000-0000-0000-000000000000',
  Buffer.from('9'.repeat(18)).toString('base64url'),
  '%00',
];
const largest = (1n << 63n) - 1n;
const seconds = [
  0n,
  1n,
  -1n,
  largest,
  -largest - 1n,
  253_402_300_799n,
  253_402_300_800n,
  3_155_760_000n,
  315_576_000_000n,
  8_640_000_000_000n,
];
const nanos = [0, -1, 999_999_999, 1_000_000_000, 2_147_483_647, -2_147_483_648];
const int32 = [0, 1, -1, 1_000, 1_001, 2_147_483_647, -2_147_483_648];

function hostileValues(field: DescField, depth = 0): unknown[] {
  if (field.fieldKind === 'list') {
    const items: unknown[] =
      field.listKind === 'message' ? messagesOf(field.message, depth) : field.listKind === 'enum' ? enums : strings;
    return [
      [],
      ...items.map((item) => [item]),
      Array.from({ length: 65 }, () => items[1]),
      Array.from({ length: 1_001 }, () => items[1]),
      [items[1], items[1]],
    ];
  }
  if (field.fieldKind === 'map') {
    const entries = strings.flatMap((text) => [{ [text]: 'v' }, { key: text }]);
    const many = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, index) => [`k${index}`, 'v']));
    return [...entries, many(64), many(65), many(1_001)];
  }
  if (field.fieldKind === 'enum') return enums;
  if (field.fieldKind === 'message') return messagesOf(field.message, depth);
  const samples: Partial<Record<string, unknown[]>> = {
    string: strings,
    boolean: [true, false],
    bigint: seconds,
    number: int32,
  };
  const found = samples[typeof scalarSample(field)];
  if (found === undefined) throw new Error(`${field.name}: add hostile values for its type`);
  return found;
}

const enums = [0, 1, 4, 99, 9_999, 2_147_483_647, -1, -2_147_483_648];

function scalarSample(field: DescField): unknown {
  return (create(field.parent) as unknown as Record<string, unknown>)[field.localName];
}

function messagesOf(desc: DescMessage, depth: number): Message[] {
  if (desc.typeName === 'google.protobuf.Timestamp' || desc.typeName === 'google.protobuf.Duration') {
    return [
      ...seconds.map((value) => ({ seconds: value, nanos: 0 })),
      ...nanos.map((value) => ({ seconds: 1n, nanos: value })),
    ].map((init) => create(desc, init as Record<string, unknown>));
  }
  if (depth > 2) return [create(desc)];
  return [
    create(desc),
    ...desc.fields.flatMap((field) =>
      hostileValues(field, depth + 1).map((value) => create(desc, { [field.localName]: value })),
    ),
  ];
}

/** The code of the answer; `undefined` when it was answered well. */
async function ask(method: DescMethod, init: Record<string, unknown>): Promise<Code | undefined> {
  const transport = createConnectTransport({ baseUrl: estate.httpUrl, httpVersion: '1.1' });
  const header = { authorization: `Bearer ${token}` };
  const input = create(method.input, init);
  const done = new AbortController();
  try {
    if (method.methodKind === 'unary') {
      await transport.unary(method as DescMethodUnary, done.signal, 20_000, header, input);
      return undefined;
    }
    const stream = await transport.stream(method as DescMethodStreaming, done.signal, 20_000, header, one(input));
    for await (const message of stream.message) {
      expect(message).toBeDefined();
      break;
    }
    return undefined;
  } catch (error) {
    return ConnectError.from(error).code;
  } finally {
    done.abort();
  }
}

async function* one<T>(value: T): AsyncIterable<T> {
  yield value;
}

const defects: unknown[] = [
  Code.Internal,
  Code.Unknown,
  Code.DataLoss,
  Code.Aborted,
  Code.Unavailable,
  Code.DeadlineExceeded,
];

test.each(methods.map((method) => [`${method.parent.name}.${method.name}`, method] as const))(
  '%s answers every hostile field with a refusal or an answer, never with a defect',
  { timeout: 90_000 },
  async (_, method) => {
    const taskId = await openTask(estate);
    const { credential } = await callers(estate).agent.issueCredential({ taskId, ...reportsRead });
    known = { taskId, leaseId: credential!.lease!.leaseId };
    const requests: [string, Record<string, unknown>][] = [
      ['empty', {}],
      ['plausible', plausible(method)],
    ];
    for (const field of method.input.fields) {
      for (const value of hostileValues(field))
        requests.push([field.name, { ...plausible(method), [field.localName]: value }]);
    }
    const found: unknown[] = [];
    for (let at = 0; at < requests.length; at += 16) {
      await Promise.all(
        requests.slice(at, at + 16).map(async ([name, init]) => {
          const code = await ask(method, init);
          if (defects.includes(code)) found.push([name, Code[code!], show(init)]);
        }),
      );
    }
    expect(found).toEqual([]);
  },
);

function show(init: Record<string, unknown>): string {
  return JSON.stringify(init, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value)).slice(0, 300);
}

/** What no generated client sends, but anybody with curl can. */
test.for([
  ['half a surrogate pair in a text', { intent: '\ud800', context: { note: 'x\udfff' } }],
  ['half a surrogate pair in the context', { context: { note: '\ud800' } }],
  ['half a surrogate pair in a name', { agent: '\udc00' }],
  ['a number for a text', { intent: 7 }],
  ['a list for a message', { ttl: [] }],
  ['an absurd duration', { ttl: '9223372036854775807s' }],
  ['a negative duration', { ttl: '-5s' }],
  ['a year that does not exist', { deadline: '99999-01-01T00:00:00Z' }],
  ['an enum by a name that does not exist', { tools: [{ tool: 'reports', tier: 'TIER_GOD' }] }],
  ['an enum by a number that does not exist', { tools: [{ tool: 'reports', tier: 4_000_000_000 }] }],
  ['a prototype', JSON.parse('{"__proto__":{"x":1},"context":{"__proto__":"y","constructor":"z"}}') as object],
  ['nesting', { context: { a: { b: { c: {} } } } }],
] as const)('OpenTask as JSON with %s is never a defect', async ([, part]) => {
  const answer = await fetch(`${estate.httpUrl}/leasehold.v1.TaskService/OpenTask`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body: JSON.stringify({
      intent: 'json',
      agent: 'analyst',
      tools: [{ tool: 'reports', tier: 'TIER_READ' }],
      ...part,
    }),
  });
  const body = (await answer.json()) as { code?: string };
  expect([undefined, 'invalid_argument']).toContain(body.code);
});

test('after all of that the broker is well, and no task or lease is where it should not be', async () => {
  expect(broker.log.filter((line) => line.includes('"rpc.failed"'))).toEqual([]);
  const taskId = await openTask(estate);
  await callers(estate).agent.issueCredential({ taskId, ...reportsRead });
  expect((await fetch(`${estate.httpUrl}/readyz`)).status).toBe(200);
  expect(
    await brokerRows(
      estate,
      `SELECT task_id FROM tasks WHERE deadline > opened_at + interval '24 hours' OR heartbeat_ms < 1000`,
    ),
  ).toEqual([]);
});
