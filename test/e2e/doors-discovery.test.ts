import { fromBinary } from '@bufbuild/protobuf';
import { BinaryReader, BinaryWriter } from '@bufbuild/protobuf/wire';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import { Client, credentials } from '@grpc/grpc-js';
import { service as healthService } from 'grpc-health-check';
import { once } from 'node:events';
import { request } from 'node:http';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createChain } from '../../src/api/chain/chain.ts';
import type { Service } from '../../src/api/call.ts';
import { BrokerError } from '../../src/domain/errors.ts';
import { createObservability } from '../../src/observability/observability.ts';
import { defaultLimits } from '../../src/server/options.ts';
import { trivialServices } from './support-doors-services.ts';
import type { TestDoors } from './support-doors.ts';
import { authenticate, grpcClient, post, startDoors } from './support-doors.ts';

let served: TestDoors;
let ready = true;
beforeAll(async () => {
  served = await startDoors({
    ready: () => ({ ready, components: [{ name: 'storage', ready, detail: 'postgres' }] }),
    corsOrigins: ['https://console.example.com'],
    hosts: ['127.0.0.1', 'broker.example.com'],
    routes: [
      {
        method: 'GET',
        path: '/keys',
        handler: () => ({ status: 200, headers: { 'cache-control': 'max-age=60' }, body: '{}' }),
      },
      { method: 'POST', path: '/echo', handler: async ({ body }) => ({ status: 200, body: await body() }) },
      {
        method: 'GET',
        path: '/files/*',
        handler: ({ path }) => ({
          status: 200,
          body: (async function* () {
            yield 'you asked for ';
            yield path;
          })(),
        }),
      },
      {
        method: 'GET',
        path: '/refuse',
        handler: () => {
          throw new BrokerError('STORAGE_UNAVAILABLE', 'The database is away.', { retryAfterMs: 1_500 });
        },
      },
      {
        method: 'GET',
        path: '/break',
        handler: () => {
          throw new Error('password=hunter2');
        },
      },
    ],
    limits: { maxMessageBytes: 10_000 },
  });
});
afterAll(() => served.doors.stop(2_000));

const get = (path: string, init: RequestInit = {}) => fetch(`http://127.0.0.1:${served.httpPort}${path}`, init);

/** fetch sets these headers by itself; a plain request can say anything. */
async function plain(options: { method?: string; path: string; headers: Record<string, string> }) {
  const sent = request({ host: '127.0.0.1', port: served.httpPort, agent: false, ...options });
  sent.end();
  const [response] = await once(sent, 'response');
  response.resume();
  await once(response, 'end');
  return response as { statusCode: number; headers: Record<string, string> };
}

/** All occurrences of a length-delimited field. */
function fieldsOf(message: Buffer, wanted: number): Buffer[] {
  const reader = new BinaryReader(message);
  const found: Buffer[] = [];
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === wanted) found.push(Buffer.from(reader.bytes()));
    else reader.skip(type);
  }
  return found;
}

describe('gRPC clients without our proto files', () => {
  test.each(['v1', 'v1alpha'])('list services and fetch their files through reflection %s', async (version) => {
    const client = new Client(`127.0.0.1:${served.grpcPort}`, credentials.createInsecure());
    const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`;
    const stream = client.makeBidiStreamRequest(
      path,
      (bytes: Buffer) => bytes,
      (bytes: Buffer) => bytes,
    );
    // ServerReflectionRequest: list_services = 7, file_containing_symbol = 4. Response: 6 { 1 { 1: name } }, 4 { 1: file }.
    const ask = async (field: number, value: string): Promise<Buffer> => {
      const answered = once(stream, 'data');
      stream.write(
        Buffer.from(
          new BinaryWriter()
            .uint32((field << 3) | 2)
            .string(value)
            .finish(),
        ),
      );
      const [answer] = await answered;
      return answer as Buffer;
    };
    const services = fieldsOf(fieldsOf(await ask(7, '*'), 6)[0]!, 1);
    const names = services.map((entry) => fieldsOf(entry, 1)[0]!.toString());
    expect(names).toContain('leasehold.v1.TaskService');
    expect(names).toContain('grpc.health.v1.Health');
    const found = fieldsOf(fieldsOf(await ask(4, 'leasehold.v1.CredentialService'), 4)[0]!, 1);
    const files = found.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes).name);
    expect(files).toEqual(
      expect.arrayContaining([
        'leasehold/v1/credential_service.proto',
        'leasehold/v1/common.proto',
        'google/protobuf/timestamp.proto',
      ]),
    );
    stream.end();
    client.close();
  });

  test('health says what /readyz says', async () => {
    const client = new Client(`127.0.0.1:${served.grpcPort}`, credentials.createInsecure());
    const { path, requestSerialize, responseDeserialize } = healthService['Check']!;
    const check = (name: string) =>
      new Promise((resolve) => {
        client.makeUnaryRequest(path, requestSerialize, responseDeserialize, { service: name }, (error, answer) =>
          resolve(error?.code ?? (answer as { status: string }).status),
        );
      });
    expect(await check('')).toBe('SERVING');
    expect(await check('leasehold.v1.TaskService')).toBe('SERVING');
    expect(await check('nobody')).toBe(5);
    const response = await get('/readyz');
    expect([response.status, await response.json()]).toEqual([
      200,
      { ready: true, components: [{ name: 'storage', ready: true, detail: 'postgres' }] },
    ]);

    ready = false;
    await expect.poll(() => check('')).toBe('NOT_SERVING');
    expect((await get('/readyz')).status).toBe(503);
    expect((await get('/healthz')).status).toBe(200);
    expect(served.events('readiness.changed').at(-1)).toMatchObject({ ready: false, notReady: ['storage'] });
    ready = true;
    await expect.poll(() => check('')).toBe('SERVING');
    client.close();
  });
});

describe('the rest of the HTTP door', () => {
  test('metrics count calls by method, door and code', async () => {
    await post(served.httpPort, '/leasehold.v1.TaskService/GetTask', {});
    await post(served.httpPort, '/leasehold.v1.TaskService/GetTask', {}, {});
    const response = await get('/metrics');
    expect(response.headers.get('content-type')).toContain('text/plain');
    const text = await response.text();
    const line = (code: string) =>
      `leasehold_rpc_total{method="leasehold.v1.TaskService/GetTask",door="http",code="${code}"} 1`;
    expect(text).toContain(line('ok'));
    expect(text).toContain(line('unauthenticated'));
    expect(text).toContain('leasehold_ready 1');
  });

  test('added routes are served, streamed, bounded and fail in the same words', async () => {
    const keys = await get('/keys');
    expect([keys.status, keys.headers.get('cache-control'), await keys.text()]).toEqual([200, 'max-age=60', '{}']);
    expect((await get('/keys', { method: 'HEAD' })).status).toBe(200);
    expect((await get('/keys', { method: 'POST' })).status).toBe(405);
    expect(await (await get('/files/a/b')).text()).toBe('you asked for /files/a/b');
    expect(await (await get('/echo', { method: 'POST', body: 'hello' })).text()).toBe('hello');
    expect((await get('/echo', { method: 'POST', body: 'x'.repeat(10_001) })).status).toBe(413);

    const refused = await get('/refuse');
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '2']);
    expect(await refused.json()).toMatchObject({ code: 'unavailable', reason: 'STORAGE_UNAVAILABLE' });
    const broken = await get('/break');
    expect(broken.status).toBe(500);
    expect(await broken.text()).toMatch(/incident [0-9a-f]{12}/);
    expect(served.logs.join('')).not.toContain('hunter2');
    expect(await (await get('/nothing')).json()).toMatchObject({ code: 'not_found' });
  });

  test('every answer carries the security headers', async () => {
    for (const path of ['/healthz', '/nothing', '/leasehold.v1.TaskService/GetTask']) {
      const { headers } = await get(path);
      expect(headers.get('x-content-type-options')).toBe('nosniff');
      expect(headers.get('content-security-policy')).toContain("default-src 'none'");
      expect(headers.get('cache-control')).toBe('no-store');
    }
  });

  test('scripts of a listed origin may call, of another not', async () => {
    const preflight = (origin: string) =>
      plain({
        method: 'OPTIONS',
        path: '/leasehold.v1.TaskService/GetTask',
        headers: { origin, 'access-control-request-method': 'POST' },
      });
    const allowed = await preflight('https://console.example.com');
    expect(allowed.headers['access-control-allow-origin']).toBe('https://console.example.com');
    expect(allowed.headers['access-control-allow-headers']).toContain('Authorization');
    expect(allowed.headers['access-control-allow-credentials']).toBeUndefined();
    const other = await preflight('https://evil.example.com');
    expect(other.headers['access-control-allow-origin']).toBeUndefined();
  });

  test('a host name that is not ours reaches nothing', async () => {
    const status = async (host: string) => (await plain({ path: '/healthz', headers: { host } })).statusCode;
    expect(await status('broker.example.com')).toBe(200);
    expect(await status('BROKER.example.com:8443')).toBe(200);
    expect(await status('rebound.example.com')).toBe(421);
    expect(await status('a b')).toBe(421);
  });
});

describe('a contract that must not be served', () => {
  const chainOf = (services: readonly Service[]) =>
    createChain({
      services,
      authenticate,
      clock: { now: () => Date.now() },
      limits: defaultLimits,
      observability: createObservability({ level: 'silent', format: 'json', write: () => undefined }),
    });

  test('an RPC that does not say who may call it stops the start', () => {
    const [task] = trivialServices();
    const { options: _options, ...proto } = task!.desc.method['getTask']!.proto;
    const open = { ...task!.desc.method['getTask']!, proto };
    const desc = { ...task!.desc, methods: [open] } as unknown as Service['desc'];
    expect(() => chainOf([{ desc, handlers: task!.handlers }])).toThrow(/GetTask does not declare who may call it/);
  });

  test('an RPC without a handler stops the start', () => {
    const [task] = trivialServices();
    const { getTask: _getTask, ...handlers } = task!.handlers;
    expect(() => chainOf([{ desc: task!.desc, handlers }])).toThrow(/GetTask has no handler/);
  });
});

test('a gRPC header that cannot be parsed is written nowhere', async () => {
  const grpc = grpcClient(served.grpcPort);
  const written: string[] = [];
  const { error } = console;
  console.error = (...parts: unknown[]) => written.push(parts.join(' '));
  try {
    const { connect } = await import('node:http2');
    const session = connect(`http://127.0.0.1:${served.grpcPort}`);
    const sent = (headers: Record<string, string>) => {
      const stream = session.request({
        ':method': 'POST',
        ':path': '/leasehold.v1.TaskService/GetTask',
        'content-type': 'application/grpc',
        te: 'trailers',
        ...headers,
      });
      stream.end(Buffer.alloc(5));
      stream.resume();
      return once(stream, 'response');
    };
    const [garbled] = await sent({ authorization: 'Bearer s\u00e9cret' });
    expect(garbled['grpc-status']).toBe('16');
    const [timeout] = await sent({ authorization: 'Bearer all-roles', 'grpc-timeout': 'soon' });
    expect(timeout['grpc-status']).toBe('3');
    session.destroy();
  } finally {
    console.error = error;
    grpc.close();
  }
  expect(written).toEqual([]);
});
