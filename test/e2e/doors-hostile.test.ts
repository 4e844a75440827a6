import type { DescField, DescMessage, DescMethod, Message } from '@bufbuild/protobuf';
import { ScalarType, create, toBinary } from '@bufbuild/protobuf';
import { DurationSchema, TimestampSchema } from '@bufbuild/protobuf/wkt';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { OpenTaskRequestSchema, TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import type { TestDoors } from './support-doors.ts';
import { everyMethod, grpcClient, metadata, post, reasonOf, startDoors } from './support-doors.ts';

// Fault 21: whatever is sent, the answer says what is wrong with it, and is never INTERNAL or UNKNOWN.

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

interface Hostile {
  what: string;
  method: DescMethod;
  bytes: Uint8Array;
  /** The field that the refusal has to name; undefined when the request is acceptable to the doors. */
  field: string | undefined;
}

/** One hostile value per way in which a field can be wrong, for every field of every request, nested ones included. */
function hostileValues(desc: DescMessage, depth = 0): { what: string; message: Message; path: string }[] {
  return desc.fields.flatMap((field): { what: string; message: Message; path: string }[] => {
    const one = (what: string, value: unknown, path: string = field.name) => ({
      what: `${field.name} is ${what}`,
      message: create(desc, { [field.localName]: value } as never),
      path,
    });
    const list = (values: unknown[]) => create(desc, { [field.localName]: values } as never);
    switch (field.fieldKind) {
      case 'scalar':
        if (field.scalar === ScalarType.STRING) {
          const long = [one('longer than allowed', 'é'.repeat(2_049)), one('with a NUL', 'a\0b')];
          return field.name === 'request_id' ? [...long, one('no UUID', 'one')] : long;
        }
        return field.name === 'page_size' ? [one('negative', -1), one('absurd', 2_147_483_647)] : [];
      case 'enum':
        return [one('unknown', 999), one('negative', -5)];
      case 'message':
        if (field.message.typeName === 'google.protobuf.Duration') {
          return [
            one('negative', create(DurationSchema, { seconds: -1n })),
            one('absurd', create(DurationSchema, { seconds: 9_223_372_036_854_775_807n })),
            one('of broken nanos', create(DurationSchema, { nanos: 2_000_000_000 })),
          ];
        }
        if (field.message.typeName === 'google.protobuf.Timestamp') {
          return [
            one('before 1970', create(TimestampSchema, { seconds: -1n })),
            one('after 9999', create(TimestampSchema, { seconds: 253_402_300_800n })),
            one('of broken nanos', create(TimestampSchema, { nanos: -1 })),
          ];
        }
        if (field.message.typeName === 'google.protobuf.Struct') {
          const deep = Array.from({ length: 10 }).reduce<object>((inner) => ({ k: inner }), {});
          return [
            one('JSON with a NUL', { k: 'a\0b' }, `${field.name}.k`),
            one('JSON with a long string', { k: ['é'.repeat(2_049)] }, `${field.name}.k.0`),
            one('JSON that is too large', Object.fromEntries(Array.from({ length: 1_001 }, (_, i) => [`k${i}`, 1]))),
            one('JSON that nests too deep', deep, `${field.name}.k.k.k.k.k.k.k.k`),
          ];
        }
        if (depth > 2) return [];
        return hostileValues(field.message, depth + 1).map(({ what, message, path }) =>
          one(`a message whose ${what}`, message, `${field.name}.${path}`),
        );
      case 'list': {
        const entry = field.listKind === 'message' ? create(field.message) : field.listKind === 'enum' ? 1 : 'x';
        const many = { what: `${field.name} is too long`, message: list(Array(1_001).fill(entry)), path: field.name };
        if (field.listKind === 'enum') {
          return [
            many,
            { what: `${field.name} holds an unknown one`, message: list([1, 77]), path: `${field.name}[1]` },
          ];
        }
        if (field.listKind !== 'message' || depth > 2) return [many];
        const nested = hostileValues(field.message, depth + 1).map(({ what, message, path }) => ({
          what: `${field.name} holds one whose ${what}`,
          message: list([message]),
          path: `${field.name}[0].${path}`,
        }));
        return [many, ...nested];
      }
      case 'map':
        return [
          {
            what: `${field.name} has a NUL`,
            message: withEntries(desc, field, { k: 'a\0' }),
            path: `${field.name}["k"]`,
          },
          {
            what: `${field.name} is too large`,
            message: withEntries(
              desc,
              field,
              Object.fromEntries(Array.from({ length: 1_001 }, (_, i) => [`k${i}`, 'v'])),
            ),
            path: field.name,
          },
        ];
    }
  });
}

function withEntries(desc: DescMessage, field: DescField, entries: Record<string, string>): Message {
  return create(desc, { [field.localName]: entries } as never);
}

const hostile: Hostile[] = everyMethod.flatMap((method) => [
  { what: 'an empty message', method, bytes: new Uint8Array(), field: undefined },
  { what: 'bytes that are no message', method, bytes: Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0x07, 0x01), field: '' },
  { what: 'a length that runs past the end', method, bytes: Uint8Array.of(0x0a, 0x7f, 0x61), field: '' },
  ...hostileValues(method.input).map(({ what, message, path }) => ({
    what,
    method,
    bytes: toBinary(method.input, message),
    field: path,
  })),
]);

describe('every RPC, with every field as it must not be', () => {
  test('there is something to try on each', () => {
    expect(hostile.length).toBeGreaterThan(everyMethod.length * 4);
  });

  test.each(everyMethod.map((method) => [`${method.parent.name}/${method.name}`, method] as const))(
    '%s names the field over gRPC',
    async (_name, method) => {
      for (const { what, bytes, field } of hostile.filter((one) => one.method === method)) {
        const result = await grpc.raw(method, bytes, metadata());
        if (field === undefined) {
          expect(result, what).toHaveProperty('answer');
        } else {
          const fields = field === '' ? [] : [field];
          expect(result, what).toMatchObject({ failure: { code: 3, reason: 'FIELD_INVALID', fields } });
        }
      }
    },
  );

  test.each(
    everyMethod
      .filter((method) => method.methodKind === 'unary')
      .map((method) => [`${method.parent.name}/${method.name}`, method] as const),
  )('%s names the field over HTTP', async (_name, method) => {
    const path = `/${method.parent.typeName}/${method.name}`;
    for (const { what, bytes, field } of hostile.filter((one) => one.method === method)) {
      const response = await fetch(`http://127.0.0.1:${served.httpPort}${path}`, {
        method: 'POST',
        headers: { 'content-type': 'application/proto', authorization: 'Bearer all-roles' },
        body: bytes as Uint8Array<ArrayBuffer>,
      });
      if (field === undefined) {
        expect(response.status, what).toBe(200);
        await response.arrayBuffer();
      } else {
        const body = (await response.json()) as { code: string };
        expect([response.status, body.code], what).toEqual([400, 'invalid_argument']);
        expect(reasonOf({ status: 400, headers: response.headers, body }), what).toBe('FIELD_INVALID');
        if (field !== '') expect(JSON.stringify(body), what).toContain(JSON.stringify(field).slice(1, -1));
      }
    }
  });
});

describe('JSON that means nothing', () => {
  test.each([
    ['no JSON', '{', undefined],
    ['an array', '[]', undefined],
    ['a misspelt field', '{"agnet":"billing"}', 'agnet'],
    ['a string for a number of the enum', '{"tools":[{"tool":"a","tier":"TIER_SUPER"}]}', 'tools[0].tier'],
    ['a duration of words', '{"ttl":"soon"}', 'ttl'],
    ['a negative duration', '{"ttl":"-5s"}', 'ttl'],
    ['a time that is none', '{"deadline":"tomorrow"}', 'deadline'],
    ['deep nesting', `{"tools":${'['.repeat(20_000)}${']'.repeat(20_000)}}`, undefined],
  ])('%s is FIELD_INVALID', async (_name, body, field) => {
    const result = await post(served.httpPort, '/leasehold.v1.TaskService/OpenTask', body);
    expect([result.status, result.body.code, reasonOf(result)]).toEqual([400, 'invalid_argument', 'FIELD_INVALID']);
    if (field !== undefined) {
      const bad = result.body.details?.find(({ type }) => type === 'google.rpc.BadRequest')?.debug;
      expect(bad).toMatchObject({ fieldViolations: [{ field }] });
    }
  });
});

describe('what a handler must not leak', () => {
  test('an unexpected error becomes an incident: its number is sent, its cause is logged', async () => {
    const secret = 'connect ECONNREFUSED postgres://leasehold:hunter2@db.internal/leasehold';
    const { trivialServices } = await import('./support-doors-services.ts');
    const failing = await startDoors({
      services: trivialServices({
        getTask: async () => {
          throw Object.assign(new Error(secret), { detail: 'row', query: 'SELECT secret' });
        },
        // A handler that answers with what is no answer.
        listTasks: async () => ({ tasks: 'many' }) as never,
        async *watchTask() {
          yield {};
          throw new Error(secret);
        },
      }),
    });
    const client = grpcClient(failing.grpcPort);
    const unary = await client.call(TaskService.method.getTask, {});
    expect(unary).toMatchObject({ failure: { code: 13, reason: 'INTERNAL' } });
    const overJson = await post(failing.httpPort, '/leasehold.v1.TaskService/GetTask', {});
    const stream = await client.raw(TaskService.method.watchTask, new Uint8Array(), metadata());
    const malformed = await client.call(TaskService.method.listTasks, {});
    for (const sent of [unary, overJson.body, stream, malformed]) {
      expect(JSON.stringify(sent)).toMatch(/incident [0-9a-f]{12}/);
      expect(JSON.stringify(sent)).not.toMatch(/hunter2|ECONNREFUSED|db\.internal|SELECT/);
    }
    const logged = failing.events('rpc.failed');
    expect(logged).toHaveLength(4);
    expect(JSON.stringify(unary)).toContain(logged[0]!['incident']);
    expect(JSON.stringify(logged)).toContain('ECONNREFUSED');
    expect(failing.logs.join('')).not.toMatch(/hunter2|SELECT/);
    client.close();
    await failing.doors.stop(1_000);
  });

  test('the token of a call is in no log line', () => {
    expect(served.logs.length).toBeGreaterThan(100);
    expect(served.logs.join('')).not.toContain('Bearer');
    expect(OpenTaskRequestSchema.typeName).toBe('leasehold.v1.OpenTaskRequest');
  });
});
