import { execFile, spawn } from 'node:child_process';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { promisify } from 'node:util';
import { credentials, loadPackageDefinition, Metadata } from '@grpc/grpc-js';
import type { Client, ClientReadableStream, GrpcObject, ServiceError } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { createEstate, startProcess } from '../support/broker.ts';
import type { BrokerProcess, TestEstate } from '../support/broker.ts';

/**
 * Three kinds of client drive one task: grpc-js with stubs made from the proto files at this moment, a Connect client, and
 * curl with JSON. The first and the last run no code of ours.
 */

const run = promisify(execFile);
const protoDir = path.join(import.meta.dirname, '..', '..', 'proto');
const loaderOptions = { keepCase: true, enums: String, longs: String, defaults: true, oneofs: true } as const;

const curl = await run('curl', ['--version'], { timeout: 20_000 }).then(
  ({ stdout }) => stdout.split('\n', 1)[0],
  () => undefined,
);
const must = process.env['CI'] === 'true';
if (curl === undefined) console.warn('SKIPPED: there is no curl here, so JSON over HTTP was NOT driven by it.');

let estate: TestEstate;
let broker: BrokerProcess;
let stubs: GrpcObject;
const open: Client[] = [];

beforeAll(async () => {
  estate = await createEstate('clients');
  broker = await startProcess(estate);
  const files = (await readdir(path.join(protoDir, 'leasehold', 'v1'))).map((file) => `leasehold/v1/${file}`);
  stubs = loadPackageDefinition(loadSync(files, { ...loaderOptions, includeDirs: [protoDir] }));
});
afterAll(async () => {
  for (const client of open) client.close();
  await broker?.stop();
  await estate?.remove();
});

type Json = Record<string, unknown>;
type Stub = Client &
  Record<string, (request: Json, metadata: Metadata, ...rest: unknown[]) => ClientReadableStream<Json>>;

/** A stub of a loaded package, by its full name. */
function stub(from: GrpcObject, name: string): Stub {
  let found: unknown = from;
  for (const part of name.split('.')) found = (found as Json)[part];
  const client = new (found as new (address: string, channel: unknown) => Stub)(
    `127.0.0.1:${estate.grpcPort}`,
    credentials.createInsecure(),
  );
  open.push(client);
  return client;
}

async function authorized(workload: string): Promise<Metadata> {
  const metadata = new Metadata();
  metadata.set('authorization', `Bearer ${await estate.mint(workload)}`);
  return metadata;
}

async function call(client: Stub, method: string, request: Json, metadata = new Metadata()): Promise<Json> {
  const deadline = Date.now() + 20_000;
  return await new Promise((resolve, reject) => {
    client[method]!(request, metadata, { deadline }, (error: ServiceError | null, answer: Json) =>
      error === null ? resolve(answer) : reject(error),
    );
  });
}

/** curl's exit, status and body. The token goes by a file: arguments are for everybody on the machine to read. */
async function curled(
  workload: string,
  method: string,
  body: Buffer,
  type = 'application/json',
): Promise<{ status: number; body: Buffer }> {
  const headers = path.join(estate.dir, `curl-${workload.replaceAll('/', '-')}`);
  await writeFile(headers, `Authorization: Bearer ${await estate.mint(workload)}\nContent-Type: ${type}\n`, {
    mode: 0o600,
  });
  const url = `${estate.httpUrl}/leasehold.v1.${method}`;
  const args = ['--silent', '--show-error', '--no-buffer', '--max-time', '30', '--header', `@${headers}`];
  const child = spawn('curl', [...args, '--data-binary', '@-', '--write-out', '%{stderr}%{http_code}', url]);
  const chunks: Buffer[] = [];
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  child.stdin.end(body);
  const code = await new Promise((resolve, reject) => child.once('error', reject).once('close', resolve));
  if (code !== 0) throw new Error(`curl ended with ${String(code)}: ${stderr}`);
  return { status: Number(stderr), body: Buffer.concat(chunks) };
}

async function curledJson(workload: string, method: string, request: Json): Promise<Json> {
  const { status, body } = await curled(workload, method, Buffer.from(JSON.stringify(request)));
  return { status, ...(JSON.parse(body.toString()) as Json) };
}

/** The Connect protocol's envelope: flags, length, message. */
function enveloped(message: Json): Buffer {
  const data = Buffer.from(JSON.stringify(message));
  const head = Buffer.alloc(5);
  head.writeUInt32BE(data.length, 1);
  return Buffer.concat([head, data]);
}

function envelopes(bytes: Buffer): { end: boolean; message: Json }[] {
  const found: { end: boolean; message: Json }[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = bytes.readUInt32BE(at + 1);
    const message = JSON.parse(bytes.subarray(at + 5, at + 5 + length).toString()) as Json;
    found.push({ end: (bytes[at]! & 2) !== 0, message });
    at += 5 + length;
  }
  return found;
}

const reports = { tool: 'reports', tier: 'TIER_READ' };

describe.skipIf(curl === undefined && !must)('one task, three kinds of client', () => {
  test('is opened by grpc-js, served to curl, watched by all and closed by Connect', async () => {
    if (curl === undefined)
      throw new Error('CI needs curl: JSON over HTTP has to be driven by something that is not ours');
    const tasks = stub(stubs, 'leasehold.v1.TaskService');
    const agent = stub(stubs, 'leasehold.v1.CredentialService');
    const orchestrator = await authorized('orchestrator');

    const opened = await call(
      tasks,
      'OpenTask',
      { intent: 'three clients', agent: 'analyst', tools: [reports, { tool: 'warehouse', tier: 'TIER_READ' }] },
      orchestrator,
    );
    const task_id = (opened['task'] as Json)['task_id'] as string;
    expect(opened).toMatchObject({
      task: { state: 'TASK_STATE_OPEN', agent: 'analyst' },
      plan: [
        { tool: 'reports', effect: 'EFFECT_ALLOW', ttl: { seconds: '600' }, provider: 'jwt' },
        { tool: 'warehouse', effect: 'EFFECT_ALLOW', provider: 'postgres' },
      ],
    });

    const watchedByGrpc: Json[] = [];
    const watch = tasks['WatchTask']!({ task_id }, orchestrator);
    watch.on('data', (message: Json) => watchedByGrpc.push(message));
    const grpcEnded = new Promise((resolve, reject) => watch.once('end', resolve).once('error', reject));
    const watchedByCurl = curled(
      'orchestrator',
      'TaskService/WatchTask',
      enveloped({ taskId: task_id }),
      'application/connect+json',
    );
    const connect = estate.client(TaskService, 'orchestrator');
    const watchedByConnect = (async () => {
      const states: number[] = [];
      for await (const { task } of connect.watchTask({ taskId: task_id })) states.push(task!.state);
      return states;
    })();

    const issued = await curledJson('agent/analyst', 'CredentialService/IssueCredential', {
      taskId: task_id,
      ...reports,
    });
    expect(issued).toMatchObject({
      status: 200,
      credential: {
        lease: { taskId: task_id, tool: 'reports', tier: 'TIER_READ', state: 'LEASE_STATE_ACTIVE' },
        accessToken: { token: expect.stringMatching(/^ey/), tokenType: 'Bearer' },
      },
    });
    const login = await call(
      agent,
      'IssueCredential',
      { task_id, tool: 'warehouse', tier: 'TIER_READ' },
      await authorized('agent/analyst'),
    );
    expect(login).toMatchObject({
      credential: {
        material: 'postgres_login',
        postgres_login: { database: estate.target.database, port: estate.target.port },
      },
    });

    const seen = await connect.getTask({ taskId: task_id });
    expect(seen.leases.map(({ tool }) => tool)).toEqual(['reports', 'warehouse']);
    expect(await curledJson('orchestrator', 'TaskService/GetTask', { taskId: task_id })).toMatchObject({
      status: 200,
      task: { taskId: task_id, state: 'TASK_STATE_OPEN' },
      summary: { unsettled: 2 },
    });

    const closed = await connect.closeTask({ taskId: task_id, wait: true });
    expect(closed.summary).toMatchObject({ unsettled: 0, revoked: 2 });
    await grpcEnded;
    const settled = { task: { state: 'TASK_STATE_CLOSED' }, summary: { unsettled: 0, revoked: 2 } };
    expect(watchedByGrpc[0]).toMatchObject({ task: { task_id } });
    expect(watchedByGrpc.at(-1)).toMatchObject(settled);
    const { status, body } = await watchedByCurl;
    const messages = envelopes(body);
    expect(status).toBe(200);
    expect(messages.at(-1)).toMatchObject({ end: true, message: {} });
    expect(messages.at(-1)!.message).not.toHaveProperty('error');
    expect(messages.at(-2)!.message).toMatchObject({ task: { state: 'TASK_STATE_CLOSED' }, summary: { revoked: 2 } });
    expect((await watchedByConnect).at(-1)).toBe(closed.task!.state);

    // The same refusal in each one's own words.
    const refused = call(agent, 'IssueCredential', { task_id, ...reports }, await authorized('agent/analyst'));
    await expect(refused).rejects.toMatchObject({ code: 9, details: expect.stringContaining('has ended') });
    expect(
      await curledJson('agent/analyst', 'CredentialService/IssueCredential', { taskId: task_id, ...reports }),
    ).toMatchObject({
      status: 400,
      code: 'failed_precondition',
      message: expect.stringContaining('has ended'),
      details: [{ type: 'google.rpc.ErrorInfo', debug: { reason: 'TASK_CLOSED', domain: 'leasehold.dev' } }],
    });
  });

  test('JSON that is not of the contract is refused with what is wrong, not with a stack', async () => {
    const wrong = async (text: string) => {
      const { status, body } = await curled('orchestrator', 'TaskService/OpenTask', Buffer.from(text));
      return { status, ...(JSON.parse(body.toString()) as Json) };
    };
    for (const text of [
      '{',
      '[]',
      '{"tools": "all"}',
      '{"ttl": "soon"}',
      '{"deadline": 17}',
      '{"tools": [{"tier": "ROOT"}]}',
    ]) {
      expect(await wrong(text), text).toMatchObject({ status: 400, code: 'invalid_argument' });
    }
  });
});

describe('a client that has no proto file of ours', () => {
  const require = createRequire(import.meta.url);
  const shipped = (name: string, file: string) =>
    path.join(path.dirname(require.resolve(`${name}/package.json`)), file);

  test.each(['v1', 'v1alpha'])('finds our services by gRPC reflection %s', async (version) => {
    const file = shipped('@grpc/reflection', `build/proto/grpc/reflection/${version}/reflection.proto`);
    const reflection = stub(
      loadPackageDefinition(loadSync(file, loaderOptions)),
      `grpc.reflection.${version}.ServerReflection`,
    );
    const ask = async (request: Json): Promise<Json> =>
      await new Promise((resolve, reject) => {
        const stream = (
          reflection['ServerReflectionInfo'] as unknown as () => ClientReadableStream<Json> & {
            write(message: Json): void;
            end(): void;
          }
        ).call(reflection);
        stream.once('data', resolve).once('error', reject);
        stream.write(request);
        stream.end();
      });
    const listed = await ask({ list_services: '' });
    const names = ((listed['list_services_response'] as Json)['service'] as { name: string }[]).map(({ name }) => name);
    const declared: string[] = [];
    for (const name of await readdir(path.join(protoDir, 'leasehold', 'v1'))) {
      const text = await readFile(path.join(protoDir, 'leasehold', 'v1', name), 'utf8');
      for (const [, service] of text.matchAll(/^service (\w+)/gm)) declared.push(`leasehold.v1.${service!}`);
    }
    expect(declared.length).toBeGreaterThan(4);
    expect(names).toEqual(expect.arrayContaining([...declared, 'grpc.health.v1.Health']));
    for (const symbol of declared) {
      const answer = await ask({ file_containing_symbol: symbol });
      const { file_descriptor_proto } = answer['file_descriptor_response'] as { file_descriptor_proto: Buffer[] };
      expect(file_descriptor_proto.length, symbol).toBeGreaterThan(0);
    }
  });

  test('is told by the health service that the broker serves', async () => {
    const file = shipped('grpc-health-check', 'proto/health/v1/health.proto');
    const health = stub(loadPackageDefinition(loadSync(file, loaderOptions)), 'grpc.health.v1.Health');
    expect(await call(health, 'Check', { service: '' })).toEqual({ status: 'SERVING' });
    expect(await call(health, 'Check', { service: 'leasehold.v1.TaskService' })).toEqual({ status: 'SERVING' });
  });
});
