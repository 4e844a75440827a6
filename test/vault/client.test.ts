import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { inspect } from 'node:util';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createVaultClient, isVaultPath, type VaultCall, type VaultClient } from '../../src/providers/vault/client.ts';
import { saidBy, VaultFailure } from '../../src/providers/vault/failure.ts';

/**
 * What node-vault does by itself and must not do here. The server is an HTTP server that behaves as a proxy, a standby or a
 * broken Vault would; what a real Vault does is for the other files of this folder.
 */
const token = 'hvs.CAESIJlocalTokenThatMustNotAppearAnywhere';
let server: Server;
let elsewhere: Server;
let client: VaultClient;
let answer: (request: IncomingMessage, response: ServerResponse, body: string) => void;
let seen: { method: string; url: string; headers: IncomingMessage['headers']; body: string }[] = [];
let seenElsewhere = 0;

const listen = async (made: Server) => {
  await new Promise<void>((resolve) => made.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(made.address() as AddressInfo).port}`;
};
const json = (response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}) => {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
};

beforeAll(async () => {
  server = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => (body += chunk));
    request.on('end', () => {
      seen.push({ method: request.method!, url: request.url!, headers: request.headers, body });
      answer(request, response, body);
    });
  });
  elsewhere = createServer((_request, response) => {
    seenElsewhere += 1;
    json(response, 200, { data: {} });
  });
  client = await createVaultClient({
    address: await listen(server),
    namespace: 'team-a',
    tls: () => ({}),
    connections: { issue: 2, settle: 2 },
    timeout: 400,
  });
});
afterAll(async () => {
  client.close();
  for (const made of [server, elsewhere]) {
    made.closeAllConnections();
    await new Promise((resolve) => made.close(resolve));
  }
});
beforeEach(() => {
  seen = [];
  answer = (_request, response) => json(response, 200, { data: { fine: true } });
});

const call = (change: Partial<VaultCall> = {}) =>
  client.call({
    method: 'GET',
    path: 'database/creds/reporting',
    token,
    lane: 'issue',
    signal: AbortSignal.timeout(5_000),
    ...change,
  });
const failureOf = async (work: Promise<unknown>): Promise<VaultFailure> => {
  const error: unknown = await work.then(
    () => new Error('it did not fail'),
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(VaultFailure);
  return error as VaultFailure;
};

test('a call goes to Vault with its own token and namespace, whatever the environment says', async () => {
  for (const [name, value] of Object.entries({
    VAULT_TOKEN: 'hvs.fromTheEnvironmentOfTheBroker',
    VAULT_NAMESPACE: 'x',
  })) {
    process.env[name] = value;
  }
  try {
    const other = await createVaultClient({
      address: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
      tls: () => ({}),
      connections: { issue: 1, settle: 1 },
      timeout: 1_000,
    });
    await other.call({ method: 'GET', path: 'sys/health', lane: 'settle', signal: AbortSignal.timeout(1_000) });
    other.close();
  } finally {
    delete process.env['VAULT_TOKEN'];
    delete process.env['VAULT_NAMESPACE'];
  }
  await call();
  expect(seen.map(({ url }) => url)).toEqual(['/v1/sys/health', '/v1/database/creds/reporting']);
  expect(seen[0]!.headers['x-vault-token']).toBeUndefined();
  expect(seen[0]!.headers['x-vault-namespace']).toBeUndefined();
  expect(seen[1]!.headers).toMatchObject({
    'x-vault-token': token,
    'x-vault-namespace': 'team-a',
    'x-vault-request': 'true',
  });
});

test('a redirect is not followed: the token goes to no other host', async () => {
  const target = await listen(elsewhere);
  answer = (_request, response) => response.writeHead(307, { location: `${target}/v1/database/creds/reporting` }).end();
  const failure = await failureOf(call());
  expect(failure).toMatchObject({ status: 307, outcome: 'refused' });
  expect(seenElsewhere).toBe(0);
});

test('a server that keeps silent is given up in time, and nobody knows what it did', async () => {
  answer = () => undefined;
  expect((await failureOf(call())).outcome).toBe('unknown');
  // A body that never ends.
  answer = (_request, response) => void response.writeHead(200).write('{');
  expect((await failureOf(call())).outcome).toBe('unknown');
});

test('a caller who gives up ends the call at once, and one who had given up before sends nothing', async () => {
  answer = () => undefined;
  const gone = new AbortController();
  const pending = failureOf(call({ signal: gone.signal, timeout: 60_000 }));
  await expect.poll(() => seen.length).toBe(1);
  gone.abort();
  expect((await pending).outcome).toBe('unknown');
  expect((await failureOf(call({ signal: AbortSignal.abort() }))).outcome).toBe('unsent');
  expect(seen).toHaveLength(1);
});

test('a server that is not there was sent nothing', async () => {
  const nobody = await createVaultClient({
    address: 'http://127.0.0.1:1',
    tls: () => ({}),
    connections: { issue: 1, settle: 1 },
    timeout: 1_000,
  });
  const failure = await failureOf(
    nobody.call({ method: 'GET', path: 'x/y', lane: 'issue', signal: AbortSignal.timeout(1_000) }),
  );
  expect(failure).toMatchObject({ status: undefined, outcome: 'unsent' });
});

test('a path stays below its mount', async () => {
  for (const path of [
    'database/../sys/raw',
    'database/./x',
    'a//b',
    'a/%2e%2e/b',
    'a?list=true',
    'a#b',
    '/a',
    '',
    'a\\b',
    'a b',
    '..',
  ]) {
    expect(isVaultPath(path), path).toBe(false);
    expect((await failureOf(call({ path }))).outcome).toBe('unsent');
  }
  expect(isVaultPath('database/creds/read-only.v2')).toBe(true);
  expect(seen).toEqual([]);
});

test('an error holds neither the token nor what Vault repeats of secrets', async () => {
  const old = 's.AbCdEfGhIjKlMnOpQrStUvWx';
  answer = (_request, response) =>
    json(response, 400, { errors: [`bad token ${token} and ${old}: CREATE ROLE x PASSWORD 'A1a-canary-password'`] });
  const failure = await failureOf(call({ method: 'POST', body: { password: 'body-canary' } }));
  const all = `${inspect(failure, { depth: 9, showHidden: true })} ${JSON.stringify(failure)} ${failure.stack}`;
  for (const secret of [token, old, 'A1a-canary-password', 'body-canary']) expect(all).not.toContain(secret);
  expect(failure).toMatchObject({ status: 400, outcome: 'refused' });
  expect(saidBy({ errors: ['permission denied'] })).toBe('permission denied');
});

test('DEBUG prints nothing of it', async () => {
  const written: string[] = [];
  const write = process.stderr.write.bind(process.stderr);
  process.stderr.write = ((text: string) => (written.push(String(text)), true)) as typeof process.stderr.write;
  try {
    // `debug` reads DEBUG once; this is how it is turned on later.
    const { default: debug } = (await import('debug' as string)) as {
      default: { enable(names: string): void; disable(): void };
    };
    debug.enable('*');
    await call({ method: 'POST', body: { password: 'debug-canary' } });
    debug.disable();
  } finally {
    process.stderr.write = write;
  }
  expect(written.join('')).not.toMatch(/debug-canary|creds|hvs\./);
});

describe('what became of a call', () => {
  const cases = [
    { status: 200, body: { data: 1 }, outcome: undefined },
    { status: 204, body: undefined, outcome: undefined },
    // node-vault refuses it; what it means is for those who asked.
    { status: 202, body: { warnings: ['queued'] }, outcome: undefined },
    { status: 403, body: { errors: ['permission denied'] }, outcome: 'refused' },
    { status: 429, body: { errors: [] }, outcome: 'refused' },
    { status: 503, body: { errors: ['Vault is sealed'] }, outcome: 'refused' },
    { status: 500, body: { errors: ['pq: connection refused'] }, outcome: 'refused' },
    { status: 500, body: { errors: ['failed to register lease'] }, outcome: 'unknown' },
    { status: 500, body: '<html>', outcome: 'unknown' },
    { status: 502, body: { errors: ['bad gateway'] }, outcome: 'unknown' },
    { status: 504, body: undefined, outcome: 'unknown' },
  ];
  test.for(cases)('$status $body is $outcome', async ({ status, body, outcome }) => {
    answer = (_request, response) => {
      response.writeHead(status);
      response.end(typeof body === 'object' ? JSON.stringify(body) : body);
    };
    if (outcome === undefined) expect((await call()).status).toBe(status);
    else expect((await failureOf(call())).outcome).toBe(outcome);
  });

  test('Retry-After is passed on', async () => {
    answer = (_request, response) => json(response, 429, { errors: ['too many'] }, { 'retry-after': '7' });
    expect((await failureOf(call())).retryAfterMs).toBe(7_000);
  });
});

test('a read is sent once; what may be repeated is, when an idle connection had just been closed', async () => {
  const dropNext = () => {
    let drops = 1;
    answer = (request, response) => {
      if (drops-- > 0) request.socket.destroy();
      else json(response, 200, { data: {} });
    };
  };
  for (const lane of ['issue', 'settle'] as const) await call({ lane });
  seen = [];
  dropNext();
  expect((await failureOf(call({ lane: 'issue' }))).outcome).toBe('unknown');
  expect(seen).toHaveLength(1);
  dropNext();
  await call({ lane: 'settle' });
  expect(seen).toHaveLength(3);
});

test('a rush of issues does not keep a revocation from its own connection', async () => {
  answer = (request, response) => {
    if (request.url!.includes('leases')) json(response, 200, {});
  };
  const stuck = Array.from({ length: 10 }, () => failureOf(call()));
  await call({ method: 'POST', path: 'sys/leases/revoke', body: {}, lane: 'settle' });
  await Promise.all(stuck);
});
