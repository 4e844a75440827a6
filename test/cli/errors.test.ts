import { execFileSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Code } from '@connectrpc/connect';
import { afterEach, beforeAll, afterAll, describe, expect, test } from 'vitest';
import { bearerOf, refusal, startFakeBroker, type FakeBroker, type Handlers } from './fake-broker.ts';
import { runCli } from './run-cli.ts';
import { taskId } from './samples.ts';

let broker: FakeBroker | undefined;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'leasehold-cli-'));
});
afterAll(async () => await rm(folder, { recursive: true, force: true }));
afterEach(async () => {
  await broker?.stop();
  broker = undefined;
});

const get = ['task', 'get', taskId];

describe('a refusal of the broker', () => {
  test.each([
    [Code.Unauthenticated, 'ATTESTATION_EXPIRED', 3],
    [Code.PermissionDenied, 'ROLE_REQUIRED', 4],
    [Code.PermissionDenied, 'POLICY_DENIED', 6],
    [Code.NotFound, 'TASK_NOT_FOUND', 5],
    [Code.FailedPrecondition, 'APPROVAL_REQUIRED', 6],
    [Code.AlreadyExists, 'REQUEST_ID_REUSED', 6],
    [Code.InvalidArgument, 'NAME_UNKNOWN', 2],
    [Code.ResourceExhausted, 'RATE_LIMITED', 7],
    [Code.ResourceExhausted, 'TOO_LARGE', 2],
    [Code.DeadlineExceeded, 'DEADLINE_EXCEEDED', 8],
    [Code.Internal, 'INTERNAL', 1],
  ])('of status %i and reason %s ends with exit code %i and one sentence', async (status, reason, expected) => {
    broker = await startFakeBroker({
      task: {
        getTask: () => {
          throw refusal(status, reason, 'Something is wrong; do this next.', { metadata: { rule: 'a/b' } });
        },
      },
    });
    const env = { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'x' };
    const [human, json] = await Promise.all([runCli(get, env), runCli([...get, '--json'], env)]);
    expect(human).toEqual({
      code: expected,
      stdout: '',
      stderr: `leasehold: Something is wrong; do this next. (${reason})\n`,
    });
    expect(json).toMatchObject({ code: expected, stdout: '' });
    expect(JSON.parse(json.stderr).error).toMatchObject({
      reason,
      message: 'Something is wrong; do this next.',
      exit_code: expected,
      metadata: { rule: 'a/b' },
    });
  });

  test('names the fields that are wrong', async () => {
    const violations = [{ field: 'tools[0].tool', description: 'no such tool; did you mean warehouse?' }];
    broker = await startFakeBroker({
      task: {
        openTask: () => {
          throw refusal(Code.InvalidArgument, 'FIELD_INVALID', 'The request is not valid', { violations });
        },
      },
    });
    const { code, stderr } = await runCli(
      ['task', 'open', 'x', '--agent', 'a', '--tool', 'warehous:read', '--json', '--server', broker.url],
      { LEASEHOLD_TOKEN: 'x' },
    );
    expect(code).toBe(2);
    expect(JSON.parse(stderr).error.violations).toEqual(violations);
    expect(JSON.parse(stderr).error.message).toContain('tools[0].tool');
  });
});

describe('without an answer of a broker', () => {
  test('a server that is not there gives 7 and the address', async () => {
    broker = await startFakeBroker({});
    const { url } = broker;
    await broker.stop();
    broker = undefined;
    const { code, stderr } = await runCli([...get, '--timeout', '2s'], { LEASEHOLD_SERVER: url, LEASEHOLD_TOKEN: 'x' });
    expect(code).toBe(7);
    expect(stderr).toContain(`no broker answers at ${url}`);
  });

  test('a server that is silent gives 8, for a call and for a stream', async () => {
    const server = createServer(() => undefined);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const env = { LEASEHOLD_SERVER: url, LEASEHOLD_TOKEN: 'x', LEASEHOLD_TIMEOUT: '300ms' };
      const results = await Promise.all([runCli(get, env), runCli(['task', 'watch', taskId], env)]);
      for (const { code, stderr } of results) {
        expect(code).toBe(8);
        expect(stderr).toContain('--timeout');
      }
    } finally {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  });

  test('something else than a broker is said to be that', async () => {
    const server = createServer((_request, response) =>
      response.setHeader('content-type', 'text/html').end('<h1>Hello</h1>'),
    );
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const { code, stderr } = await runCli(get, { LEASEHOLD_SERVER: url, LEASEHOLD_TOKEN: 'x' });
      expect(code).toBe(1);
      expect(stderr).toContain('not a broker’s answer');
    } finally {
      await new Promise((resolve) => server.close(resolve));
    }
  });
});

describe('the attestation', () => {
  const echo: { bearer: string | null } = { bearer: null };
  const handlers: Handlers = { task: { getTask: (_request, context) => ((echo.bearer = bearerOf(context)), {}) } };

  test('is asked for when there is none', async () => {
    const { code, stderr } = await runCli(get);
    expect(code).toBe(3);
    expect(stderr).toContain('LEASEHOLD_TOKEN_FILE');
  });

  test('of a file wins over the environment', async () => {
    const file = path.join(folder, 'svid');
    await writeFile(file, 'from.a.file\n');
    broker = await startFakeBroker(handlers);
    await runCli([...get, '--token-file', file], { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'from.environment' });
    expect(echo.bearer).toBe('Bearer from.a.file');
  });

  test.each([
    ['is not there', undefined],
    ['is empty', '\n'],
    ['holds two lines', 'a.b.c\nx-evil: 1'],
    ['is far too large', 'x'.repeat(100_000)],
  ])('in a file that %s is refused without a call, and without showing it', async (_name, content) => {
    const file = path.join(folder, `svid-${Math.random()}`);
    if (content !== undefined) await writeFile(file, content);
    const { code, stderr } = await runCli([...get, '--token-file', file]);
    expect(code).toBe(3);
    expect(stderr).toContain(file);
    expect(stderr).not.toContain('evil');
  });

  test('is not sent in plain text to another machine unless that is asked for by name', async () => {
    const { code, stderr } = await runCli([...get, '--server', 'http://broker.example:7080'], { LEASEHOLD_TOKEN: 'x' });
    expect(code).toBe(2);
    expect(stderr).toContain('--allow-plaintext');
  });
});

test('over TLS an unknown authority is refused with a way out, and --ca-file is that way', async () => {
  const [key, cert] = [path.join(folder, 'key.pem'), path.join(folder, 'cert.pem')];
  const openssl = `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout ${key} -out ${cert}`;
  execFileSync('openssl', openssl.split(' '), { stdio: 'ignore' });
  broker = await startFakeBroker(
    { task: { getTask: () => ({}) } },
    { key: await readFile(key, 'utf8'), cert: await readFile(cert, 'utf8') },
  );
  const env = { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'x', LEASEHOLD_TIMEOUT: '5s' };
  const refused = await runCli(get, env);
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('--ca-file');
  expect(await runCli([...get, '--ca-file', cert, '--json'], env)).toMatchObject({ code: 0, stderr: '' });
});

test('usage errors are JSON too when JSON is asked for', async () => {
  const { code, stderr } = await runCli(['task', 'get', 'nonsense', '--json']);
  expect(code).toBe(2);
  expect(JSON.parse(stderr).error).toMatchObject({ reason: 'USAGE', exit_code: 2 });
});
