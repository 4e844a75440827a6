import { createClient } from '@connectrpc/connect';
import { createConnectTransport, createGrpcWebTransport } from '@connectrpc/connect-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ErrorInfoSchema } from '../../src/gen/google/rpc/error_details_pb.js';
import { OpenTaskResponseSchema, TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import type { TestDoors } from './support-doors.ts';
import { everyMethod, grpcClient, metadata, post, reasonOf, startDoors, token } from './support-doors.ts';

let served: TestDoors;
let grpc: ReturnType<typeof grpcClient>;
beforeAll(async () => {
  served = await startDoors();
  grpc = grpcClient(served.grpcPort);
});
afterAll(async () => {
  grpc.close();
  await served.doors.stop(2_000);
});

describe('one implementation behind both doors', () => {
  test('a grpc-js client, a Connect client, a gRPC-Web client and plain JSON get the same answer', async () => {
    const wanted = { agent: 'billing', intent: 'try it' };
    const overGrpc = await grpc.call(TaskService.method.openTask, wanted);
    if ('failure' in overGrpc) throw new Error(JSON.stringify(overGrpc.failure));
    const options = {
      baseUrl: `http://127.0.0.1:${served.httpPort}`,
      httpVersion: '1.1' as const,
      interceptors: [
        (next) => (request) => {
          request.header.set('authorization', `Bearer ${token}`);
          return next(request);
        },
      ] as import('@connectrpc/connect').Interceptor[],
    };
    const overConnect = await createClient(TaskService, createConnectTransport(options)).openTask(wanted);
    const overWeb = await createClient(TaskService, createGrpcWebTransport(options)).openTask(wanted);
    const overJson = await post(served.httpPort, '/leasehold.v1.TaskService/OpenTask', wanted);

    const answer = { task: { taskId: 'tsk_1', agent: 'billing', intent: 'try it', opener: 'spiffe://test/all-roles' } };
    expect(overGrpc.answer).toMatchObject(answer);
    expect(overConnect).toMatchObject(answer);
    expect(overWeb).toMatchObject(answer);
    expect(overJson).toMatchObject({ status: 200, body: answer });
    expect(OpenTaskResponseSchema.typeName).toBe(overConnect.$typeName);
  });

  test('streams arrive on both doors', async () => {
    const watch = grpc.stream(TaskService.method.watchTask, { taskId: 'tsk_9' });
    const messages: unknown[] = [];
    for await (const message of watch) messages.push(message);
    expect(messages).toMatchObject([{ task: { taskId: 'tsk_9' } }]);

    for (const create of [createConnectTransport, createGrpcWebTransport]) {
      const transport = create({ baseUrl: `http://127.0.0.1:${served.httpPort}`, httpVersion: '1.1' });
      const seen: unknown[] = [];
      const headers = { authorization: `Bearer ${token}` };
      for await (const message of createClient(TaskService, transport).watchTask({ taskId: 'tsk_9' }, { headers })) {
        seen.push(message);
      }
      expect(seen).toMatchObject([{ task: { taskId: 'tsk_9' } }]);
    }
  });

  test('a read can be fetched with GET', async () => {
    const query = `encoding=json&message=${encodeURIComponent('{"taskId":"tsk_7"}')}&connect=v1`;
    const response = await fetch(`http://127.0.0.1:${served.httpPort}/leasehold.v1.TaskService/GetTask?${query}`, {
      headers: { authorization: `Bearer ${token}` },
    });
    expect(await response.json()).toMatchObject({ task: { taskId: 'tsk_7' } });
  });

  test('a traceparent reaches the handler and the log', async () => {
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const headers = metadata();
    headers.set('traceparent', traceparent);
    const result = await grpc.call(TaskService.method.openTask, {}, headers);
    expect(result).toMatchObject({ answer: { policyRevision: traceparent } });
    expect(served.events('rpc.finished').at(-1)).toMatchObject({ traceId: '0af7651916cd43dd8448eb211c80319c' });
  });
});

describe('every RPC of the contract', () => {
  test.each(everyMethod.map((method) => [`${method.parent.name}/${method.name}`, method] as const))(
    '%s is refused without credentials on both doors',
    async (_name, method) => {
      const overGrpc = await grpc.raw(method, new Uint8Array(), metadata(''));
      expect(overGrpc).toMatchObject({ failure: { code: 16, reason: 'ATTESTATION_MISSING' } });

      const path = `/${method.parent.typeName}/${method.name}`;
      if (method.methodKind === 'unary') {
        const overJson = await post(served.httpPort, path, {}, {});
        expect([overJson.status, overJson.body.code, reasonOf(overJson)]).toEqual([
          401,
          'unauthenticated',
          'ATTESTATION_MISSING',
        ]);
      } else {
        const transport = createConnectTransport({
          baseUrl: `http://127.0.0.1:${served.httpPort}`,
          httpVersion: '1.1',
        });
        const client = createClient(method.parent, transport) as unknown as Record<
          string,
          (r: object) => AsyncIterable<unknown>
        >;
        const opened = (async () => {
          for await (const _message of client[method.localName]!({})) void _message;
        })();
        await expect(opened).rejects.toMatchObject({ code: 16 });
      }
    },
  );

  test('is refused to a caller whose roles it does not name', async () => {
    const result = await grpc.call(TaskService.method.openTask, {}, metadata('Bearer role-auditor'));
    expect(result).toMatchObject({ failure: { code: 7, reason: 'ROLE_REQUIRED' } });
    const overJson = await post(
      served.httpPort,
      '/leasehold.v1.TaskService/OpenTask',
      {},
      { authorization: 'Bearer role-auditor' },
    );
    expect([overJson.status, reasonOf(overJson)]).toEqual([403, 'ROLE_REQUIRED']);
  });
});

describe('what is not a call', () => {
  test.each([
    ['a scheme that is not Bearer', 'Basic dXNlcjpwYXNz'],
    ['a token with a space', 'Bearer a b'],
    ['no token', 'Bearer '],
    ['a token of 20,000 characters', `Bearer ${'a'.repeat(20_000)}`],
    ['an unknown token', 'Bearer nobody'],
  ])('%s is refused as an attestation', async (_name, authorization) => {
    const result = await grpc.call(TaskService.method.getTask, {}, metadata(authorization));
    expect(result).toMatchObject({ failure: { code: 16 } });
    const overJson = await post(served.httpPort, '/leasehold.v1.TaskService/GetTask', {}, { authorization });
    expect(overJson.status).toBe(401);
    expect(overJson.headers.get('www-authenticate')).toBe('Bearer');
  });

  test('an unknown method and an unknown path are told apart from errors of the broker', async () => {
    const unknown = { ...TaskService.method.getTask, name: 'Nope' } as unknown as typeof TaskService.method.getTask;
    expect(await grpc.raw(unknown, new Uint8Array(), metadata())).toMatchObject({ failure: { code: 12 } });
    expect(await post(served.httpPort, '/leasehold.v1.TaskService/Nope', {})).toMatchObject({
      status: 404,
      body: { code: 'not_found' },
    });
    const wrongType = await post(served.httpPort, '/leasehold.v1.TaskService/GetTask', '<a/>', {
      'content-type': 'text/xml',
    });
    expect(wrongType).toMatchObject({ status: 415, body: { message: expect.stringContaining('application/json') } });
  });

  test('details of JSON errors are readable as google.rpc.ErrorInfo', async () => {
    const overJson = await post(served.httpPort, '/leasehold.v1.TaskService/GetTask', {}, {});
    const transport = createConnectTransport({ baseUrl: `http://127.0.0.1:${served.httpPort}`, httpVersion: '1.1' });
    const error = await createClient(TaskService, transport)
      .getTask({})
      .catch((thrown: unknown) => thrown);
    const info = (error as import('@connectrpc/connect').ConnectError).findDetails(ErrorInfoSchema)[0];
    expect(info).toMatchObject({ reason: 'ATTESTATION_MISSING', domain: 'leasehold.dev' });
    expect(overJson.body.details?.[0]?.debug).toMatchObject({ reason: 'ATTESTATION_MISSING' });
  });
});
