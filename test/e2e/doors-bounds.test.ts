import { createClient } from '@connectrpc/connect';
import { createConnectTransport, createGrpcWebTransport } from '@connectrpc/connect-node';
import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { connect } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import type { DoorsOptions } from '../../src/server/doors.ts';
import { patientStream, trivialServices } from './support-doors-services.ts';
import type { TestDoors } from './support-doors.ts';
import { authenticate, grpcClient, metadata, post, reasonOf, startDoors, token } from './support-doors.ts';

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function open(options: Partial<DoorsOptions> = {}): Promise<TestDoors & { grpc: ReturnType<typeof grpcClient> }> {
  const served = await startDoors(options);
  cleanups.push(() => served.doors.stop(1_000));
  const grpc = grpcClient(served.grpcPort);
  cleanups.push(() => grpc.close());
  return { ...served, grpc };
}

const getTask = '/leasehold.v1.TaskService/GetTask';

describe('rate and load', () => {
  test('a workload that calls too often is told when to come back, another is not affected', async () => {
    const { grpc, httpPort } = await open({ limits: { callsPerSecond: 0.1, burst: 3 } });
    for (let i = 0; i < 3; i++) expect(await grpc.call(TaskService.method.getTask, {})).toHaveProperty('answer');
    const refused = await grpc.call(TaskService.method.getTask, {});
    expect(refused).toMatchObject({ failure: { code: 8, reason: 'RATE_LIMITED' } });
    expect((refused as { failure: { retryMs: number } }).failure.retryMs).toBeGreaterThan(5_000);
    const overJson = await post(httpPort, getTask, {});
    expect([overJson.status, reasonOf(overJson)]).toEqual([429, 'RATE_LIMITED']);
    const other = await grpc.call(TaskService.method.getTask, {}, metadata('Bearer role-agent'));
    expect(other).toHaveProperty('answer');
  });

  test('streams of one caller and calls in work are bounded', async () => {
    let release!: () => void;
    const held = new Promise<void>((resolve) => (release = resolve));
    const { grpc } = await open({
      limits: { streamsPerCaller: 1, maxInFlight: 1 },
      services: trivialServices({
        watchTask: patientStream(() => undefined),
        getTask: async () => {
          await held;
          return {};
        },
      }),
    });
    const first = grpc.stream(TaskService.method.watchTask);
    first.on('error', () => undefined);
    await once(first, 'data');
    const second = await grpc.raw(TaskService.method.watchTask, new Uint8Array(), metadata());
    expect(second).toMatchObject({ failure: { code: 8, reason: 'RATE_LIMITED' } });
    first.cancel();

    const pending = grpc.call(TaskService.method.getTask, {});
    const tooMany = await grpc.call(TaskService.method.getTask, {});
    expect(tooMany).toMatchObject({ failure: { code: 8, reason: 'RATE_LIMITED' } });
    release();
    expect(await pending).toHaveProperty('answer');
  });
});

describe('the bounds of a tenant', () => {
  // Attestation as always, with a tenant before the token: `acme/role-agent`.
  const ofTenants: Partial<DoorsOptions> = {
    authenticate: async (presented) => {
      const [tenant, rest] = presented.split('/') as [string, string];
      return { ...(await authenticate(rest)), tenant };
    },
  };
  const as = (caller: string) => metadata(`Bearer ${caller}`);
  const bounded = { callsPerSecond: 1_000, burst: 1_000, maxInFlight: 1_000, maxStreams: 1_000 };
  const perTenant =
    (bounds: Partial<typeof bounded>) =>
    (tenant: string): typeof bounded | undefined =>
      tenant === 'acme' ? { ...bounded, ...bounds } : bounded;
  const limited = (bound: string) => ({
    failure: { code: 8, reason: 'RATE_LIMITED', message: expect.stringContaining(`perTenant.${bound}`) as string },
  });
  const { getTask: get, watchTask: watch } = TaskService.method;

  test('are on the rate of all its workloads together, and another tenant does not feel it', async () => {
    const { grpc } = await open({ ...ofTenants, limits: { perTenant: perTenant({ callsPerSecond: 0.1, burst: 3 }) } });
    for (const one of ['acme/role-agent', 'acme/role-orchestrator', 'acme/role-agent']) {
      expect(await grpc.call(get, {}, as(one))).toHaveProperty('answer');
    }
    const refused = await grpc.call(get, {}, as('acme/all-roles'));
    expect(refused).toMatchObject(limited('callsPerSecond'));
    expect((refused as { failure: { retryMs: number } }).failure.retryMs).toBeGreaterThan(5_000);
    expect(await grpc.call(get, {}, as('default/all-roles'))).toHaveProperty('answer');
  });

  test('are on what it has in work, and a call that ends in whatever way makes room for the next', async () => {
    const waiting: (() => void)[] = [];
    const { grpc } = await open({
      ...ofTenants,
      limits: { perTenant: perTenant({ maxInFlight: 2, maxStreams: 1 }) },
      services: trivialServices({
        watchTask: patientStream(() => undefined),
        getTask: async (_request, { caller }) => {
          if (caller.tenant === 'acme') await new Promise<void>((resolve) => waiting.push(resolve));
          return {};
        },
      }),
    });
    const first = grpc.call(get, {}, as('acme/role-agent'));
    const late = grpc.call(get, {}, as('acme/role-orchestrator'), 300);
    await expect.poll(() => waiting.length).toBe(2);
    expect(await grpc.call(get, {}, as('acme/all-roles'))).toMatchObject(limited('maxInFlight'));
    expect(await grpc.call(get, {}, as('default/all-roles'))).toHaveProperty('answer');
    // One runs out of time, its handler still at work; the other is answered.
    expect(await late).toHaveProperty('failure');
    waiting[0]!();
    expect(await first).toHaveProperty('answer');
    const [third, fourth] = [grpc.call(get, {}, as('acme/role-agent')), grpc.call(get, {}, as('acme/role-agent'))];
    await expect.poll(() => waiting.length).toBe(4);
    for (const release of waiting) release();
    expect(await third).toHaveProperty('answer');
    expect(await fourth).toHaveProperty('answer');

    const stream = grpc.stream(watch, {}, as('acme/role-agent'));
    stream.on('error', () => undefined);
    await once(stream, 'data');
    expect(await grpc.raw(watch, new Uint8Array(), as('acme/role-orchestrator'))).toMatchObject(limited('maxStreams'));
    stream.cancel();
    await expect
      .poll(async () => {
        const again = grpc.stream(watch, {}, as('acme/role-orchestrator'));
        const opened = await Promise.race([
          once(again, 'data').then(() => true),
          once(again, 'error').then(() => false),
        ]);
        again.on('error', () => undefined).cancel();
        return opened;
      })
      .toBe(true);
  });
});

describe('size', () => {
  test('a request and an answer beyond the bound are TOO_LARGE on both doors', async () => {
    const { grpc, httpPort } = await open({
      limits: { maxMessageBytes: 20_000 },
      services: trivialServices({ listTasks: async () => ({ tasks: [{ intent: 'x'.repeat(30_000) }] }) }),
    });
    const context = Object.fromEntries(Array.from({ length: 20 }, (_, i) => [`k${i}`, 'v'.repeat(2_000)]));
    const request = await grpc.call(TaskService.method.openTask, { context });
    expect(request).toMatchObject({ failure: { code: 8, reason: 'TOO_LARGE' } });
    const answer = await grpc.call(TaskService.method.listTasks, {});
    expect(answer).toMatchObject({ failure: { code: 8, reason: 'TOO_LARGE' } });

    const overJson = await post(httpPort, '/leasehold.v1.TaskService/OpenTask', { context });
    expect([overJson.status, reasonOf(overJson)]).toEqual([429, 'TOO_LARGE']);
    const answerOverJson = await post(httpPort, '/leasehold.v1.TaskService/ListTasks', {});
    expect([answerOverJson.status, reasonOf(answerOverJson)]).toEqual([429, 'TOO_LARGE']);
    for (const create of [createGrpcWebTransport, createConnectTransport]) {
      const transport = create({ baseUrl: `http://127.0.0.1:${httpPort}`, httpVersion: '1.1' });
      const headers = { authorization: `Bearer ${token}` };
      await expect(createClient(TaskService, transport).openTask({ context }, { headers })).rejects.toMatchObject({
        code: 8,
      });
    }
  });

  test('a body without end is cut off with an answer', async () => {
    const { httpPort } = await open({ limits: { maxMessageBytes: 10_000 } });
    const body = new ReadableStream({ pull: (controller) => controller.enqueue(Buffer.alloc(4_096, '{')) });
    const response = await fetch(`http://127.0.0.1:${httpPort}${getTask}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
      body,
      duplex: 'half',
    } as RequestInit).catch((error: unknown) => error);
    // The answer may meet a sender that does not listen; what counts is that the sending is over.
    if (response instanceof Response) expect(response.status).toBe(429);
  });
});

describe('time', () => {
  test('a handler that ignores its signal is answered for at the deadline, on both doors', async () => {
    const signals: AbortSignal[] = [];
    const { grpc, httpPort, events } = await open({
      limits: { maxDeadlineMs: 200 },
      services: trivialServices({
        getTask: (_request, call) => {
          signals.push(call.signal);
          return new Promise<never>(() => undefined);
        },
      }),
    });
    const bounded = await grpc.call(TaskService.method.getTask, {}, metadata(), 60_000);
    expect(bounded).toMatchObject({ failure: { code: 4, reason: 'DEADLINE_EXCEEDED' } });
    const overJson = await post(httpPort, getTask, {});
    expect([overJson.status, reasonOf(overJson)]).toEqual([504, 'DEADLINE_EXCEEDED']);
    const own = await post(httpPort, getTask, {}, { authorization: `Bearer ${token}`, 'connect-timeout-ms': '50' });
    expect([own.status, reasonOf(own)]).toEqual([504, 'DEADLINE_EXCEEDED']);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, true, true]);
    expect(events('rpc.refused').filter(({ reason }) => reason === 'DEADLINE_EXCEEDED')).toHaveLength(3);
  });

  test('a stream has no deadline but the one that its caller sets', async () => {
    const { grpc } = await open({
      limits: { defaultDeadlineMs: 1, maxDeadlineMs: 1 },
      services: trivialServices({
        async *watchTask(_request, call) {
          yield { task: { taskId: String(call.deadline) } };
        },
      }),
    });
    expect(await grpc.raw(TaskService.method.watchTask, new Uint8Array(), metadata())).toMatchObject({
      answer: { task: { taskId: 'Infinity' } },
    });
  });

  test('a caller that goes away aborts the signal of its handler', async () => {
    let aborted!: (reason: unknown) => void;
    const seen = new Promise<unknown>((resolve) => (aborted = resolve));
    const { grpc, events } = await open({ services: trivialServices({ watchTask: patientStream(aborted) }) });
    const watch = grpc.stream(TaskService.method.watchTask);
    watch.on('error', () => undefined);
    await once(watch, 'data');
    watch.cancel();
    expect(await seen).toMatchObject({ name: 'Cancelled' });
    expect(events('rpc.finished').at(-1)).toMatchObject({ code: 'cancelled' });
  });

  test('a request that is never finished is dropped', async () => {
    const { httpPort } = await open({ limits: { requestTimeoutMs: 300, headersTimeoutMs: 200 } });
    const socket = connect(httpPort, '127.0.0.1');
    socket.write('POST / HTTP/1.1\r\nHost: localhost\r\nContent-Len');
    const chunks: string[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk.toString()));
    await once(socket, 'close');
    expect(chunks.join('')).toContain('408');
  });
});

describe('a reader that does not read', () => {
  test('holds the producer back, is cut off, and costs only itself', async () => {
    let produced = 0;
    const { grpc, grpcPort, httpPort, events } = await open({
      limits: { streamStallMs: 500 },
      services: trivialServices({
        async *watchTask() {
          for (;;) {
            produced += 1;
            yield { task: { intent: 'x'.repeat(60_000) } };
          }
        },
      }),
    });
    // A bare HTTP/2 client, since the gRPC library reads ahead by itself.
    const session = connectHttp2(`http://127.0.0.1:${grpcPort}`);
    cleanups.push(() => session.destroy());
    const watch = session.request({
      ':method': 'POST',
      ':path': '/leasehold.v1.TaskService/WatchTask',
      'content-type': 'application/grpc',
      te: 'trailers',
      authorization: `Bearer ${token}`,
    });
    watch.on('error', () => undefined);
    watch.end(Buffer.alloc(5));
    await once(watch, 'close');
    expect(watch.rstCode).toBe(8);
    // Flow control, not memory, holds what was produced: a few windows of 64 KiB, not a stream of them.
    expect(produced).toBeLessThan(60);
    const refused = () => events('rpc.refused').filter(({ reason }) => reason === 'RATE_LIMITED');
    expect(refused()).toHaveLength(1);
    expect(await grpc.call(TaskService.method.getTask, {})).toHaveProperty('answer');

    // Connect over a socket that is not read: the envelope of an empty request, then silence.
    const socket = connect(httpPort, '127.0.0.1');
    socket.pause();
    socket.on('error', () => undefined);
    const path = '/leasehold.v1.TaskService/WatchTask';
    socket.write(
      `POST ${path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n` +
        'Content-Type: application/connect+proto\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0',
    );
    await expect.poll(() => refused().length, { timeout: 20_000 }).toBe(2);
    socket.resume();
    await once(socket, 'close');
    expect(produced).toBeLessThan(1_000);
  });
});
