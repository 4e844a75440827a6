import { spawnSync } from 'node:child_process';
import { mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { Code } from '@connectrpc/connect';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LeaseState, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import type {
  CredentialSchema,
  IssueCredentialRequest,
  RenewCredentialRequest,
} from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { refusal, startFakeBroker, type FakeBroker, type Handlers } from './fake-broker.ts';
import { runCli, type CliResult } from './run-cli.ts';
import { leaseId, requestId, sampleLease, taskId } from './samples.ts';

const password = `it's:a\\"$(secret)`;
const login: MessageInitShape<typeof CredentialSchema> = {
  lease: sampleLease(),
  material: {
    case: 'postgresLogin',
    value: { host: '::1', port: 5432, database: 'sales', username: 'lh_1', password, sslmode: 'require' },
  },
  renewAfter: timestampFromMs(Date.UTC(2030, 0, 2, 3, 4, 5)),
};
const token: MessageInitShape<typeof CredentialSchema> = {
  lease: sampleLease({ provider: 'jwt' }),
  material: { case: 'accessToken', value: { token: 'head.body.signature', tokenType: 'Bearer' } },
};

let broker: FakeBroker | undefined;
let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'leasehold-cli-'));
});
afterEach(async () => {
  await broker?.stop();
  broker = undefined;
  await rm(folder, { recursive: true, force: true });
});

async function cli(handlers: Handlers, ...args: string[]): Promise<CliResult> {
  broker = await startFakeBroker(handlers);
  return await runCli(args, { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'caller.token' });
}

const issuing = (credential: MessageInitShape<typeof CredentialSchema>): Handlers => ({
  credential: { issueCredential: () => ({ credential }) },
});
const issue = ['credential', 'issue', taskId, '--tool', 'warehouse:read'];

describe('credential issue', () => {
  test('sends declared arguments with their types', async () => {
    let seen: IssueCredentialRequest | undefined;
    const handlers: Handlers = {
      credential: { issueCredential: (request) => ((seen = request), { credential: login }) },
    };
    const given = ['amount=40', 'dry_run=true', 'repository=acme/web', 'ticket="40"', 'note={}'];
    const { code } = await cli(handlers, ...issue, ...given.flatMap((one) => ['--argument', one]));
    expect(code).toBe(0);
    expect(seen?.arguments).toEqual({ amount: 40, dry_run: true, repository: 'acme/web', ticket: '40', note: '{}' });
    expect((await runCli([...issue, '--argument', 'Amount=1'])).code).toBe(2);
  });

  test('asks for one tool and tier, and prints the lease and what it got', async () => {
    let seen: IssueCredentialRequest | undefined;
    const handlers: Handlers = {
      credential: { issueCredential: (request) => ((seen = request), { credential: login }) },
    };
    const { code, stdout } = await cli(handlers, ...issue, '--justification', 'month end', '--request-id', requestId);
    expect(code).toBe(0);
    expect(seen).toMatchObject({ taskId, tool: 'warehouse', tier: Tier.READ, justification: 'month end', requestId });
    expect(stdout).toContain(leaseId);
    expect(stdout).toMatch(/^renew after +2030-01-02T03:04:05Z/m);
    expect(stdout).toContain(`password     ${password}\n`);
  });

  test('--json prints the response', async () => {
    const { stdout } = await cli(issuing(token), ...issue, '--json');
    expect(JSON.parse(stdout).credential.accessToken).toEqual({ token: 'head.body.signature', tokenType: 'Bearer' });
  });

  test('--format token prints the bare token', async () => {
    expect((await cli(issuing(token), ...issue, '--format', 'token')).stdout).toBe('head.body.signature\n');
  });

  test('--format env survives a shell, whatever the password holds', async () => {
    const { stdout } = await cli(issuing(login), ...issue, '--format', 'env');
    const shell = spawnSync(
      'sh',
      ['-c', `${stdout}\nprintf '%s|%s|%s' "$PGPASSWORD" "$PGHOST" "$LEASEHOLD_RENEW_AFTER"`],
      {
        encoding: 'utf8',
      },
    );
    expect(shell.stdout).toBe(`${password}|::1|2030-01-02T03:04:05Z`);
  });

  test('--format pgpass escapes what libpq would split at', async () => {
    const { stdout } = await cli(issuing(login), ...issue, '--format', 'pgpass');
    expect(stdout).toBe(`\\:\\:1:5432:sales:lh_1:it's\\:a\\\\"$(secret)\n`);
  });

  test('--output writes a file of mode 0600 over the old one, and prints no secret', async () => {
    const file = path.join(folder, 'login.json');
    await writeFile(file, 'old', { mode: 0o644 });
    const { code, stdout, stderr } = await cli(issuing(login), ...issue, '--output', file, '--json');
    expect(code).toBe(0);
    expect(stdout + stderr).not.toContain('secret');
    expect(JSON.parse(stdout).credential.lease.leaseId).toBe(leaseId);
    expect(JSON.parse(await readFile(file, 'utf8')).credential.postgresLogin.password).toBe(password);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect(await readdir(folder)).toEqual(['login.json']);
  });

  test('a file that cannot be written is found before anything is issued', async () => {
    let calls = 0;
    const handlers: Handlers = { credential: { issueCredential: () => (calls++, { credential: login }) } };
    const { code, stderr } = await cli(handlers, ...issue, '--output', path.join(folder, 'missing', 'file'));
    expect(code).toBe(2);
    expect(stderr).toContain('choose another --output');
    expect(calls).toBe(0);
  });

  test('a format that cannot hold the credential says how to get it after all, and prints no secret', async () => {
    const { code, stdout, stderr } = await cli(
      issuing(login),
      ...issue,
      '--format',
      'token',
      '--request-id',
      requestId,
    );
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(`--request-id ${requestId}`);
    expect(stderr).toContain(`leasehold credential return ${leaseId}`);
    expect(stderr).not.toContain('secret');
  });

  test('UNAVAILABLE is tried again with the same request_id, as late as the broker asks', async () => {
    const seen: string[] = [];
    const handlers: Handlers = {
      credential: {
        issueCredential: (request) => {
          seen.push(request.requestId);
          if (seen.length < 3) throw refusal(Code.Unavailable, 'STORAGE_UNAVAILABLE', 'Retry.', { retryAfterMs: 10 });
          return { credential: token };
        },
      },
    };
    const { code } = await cli(handlers, ...issue, '--format', 'token');
    expect(code).toBe(0);
    expect(seen).toHaveLength(3);
    expect(new Set(seen).size).toBe(1);
  });

  test('gives up after a bounded number of tries and names the request_id to go on with', async () => {
    const seen: string[] = [];
    const handlers: Handlers = {
      credential: {
        issueCredential: (request) => {
          seen.push(request.requestId);
          throw refusal(Code.Unavailable, 'STORAGE_UNAVAILABLE', 'The database is away; retry.', { retryAfterMs: 1 });
        },
      },
    };
    const { code, stderr } = await cli(handlers, ...issue, '--json');
    expect(code).toBe(7);
    expect(seen).toHaveLength(5);
    expect(JSON.parse(stderr).error).toMatchObject({
      reason: 'STORAGE_UNAVAILABLE',
      request_id: seen[0],
      exit_code: 7,
    });
  });
});

test('credential renew names the lease and delivers like issue', async () => {
  let seen: RenewCredentialRequest | undefined;
  const handlers: Handlers = {
    credential: { renewCredential: (request) => ((seen = request), { credential: token }) },
  };
  const { stdout } = await cli(
    handlers,
    'credential',
    'renew',
    leaseId,
    '--format',
    'token',
    '--request-id',
    requestId,
  );
  expect(seen).toMatchObject({ leaseId, requestId });
  expect(stdout).toBe('head.body.signature\n');
});

test('credential return prints what became of the lease', async () => {
  const lease = sampleLease({ state: LeaseState.SETTLING });
  const { code, stdout } = await cli(
    { credential: { returnCredential: () => ({ lease }) } },
    'credential',
    'return',
    leaseId,
  );
  expect(code).toBe(0);
  expect(stdout).toMatch(new RegExp(`${leaseId}.*settling`));
});

describe('credential stream', () => {
  const stream = ['credential', 'stream', taskId, '--tool', 'orders:read'];
  const next = (text: string): MessageInitShape<typeof CredentialSchema> => ({
    ...token,
    material: { case: 'accessToken', value: { token: text, tokenType: 'Bearer' } },
  });

  test('--json prints one document per credential', async () => {
    const handlers: Handlers = {
      credential: {
        streamCredential: async function* () {
          yield { credential: next('a.b.c') };
          yield { credential: next('d.e.f') };
        },
      },
    };
    const { code, stdout } = await cli(handlers, ...stream, '--json');
    expect(code).toBe(0);
    const tokens = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).credential.accessToken.token);
    expect(tokens).toEqual(['a.b.c', 'd.e.f']);
  });

  test('--output always holds the newest, and the reason of the end is the exit code', async () => {
    const file = path.join(folder, 'token');
    const handlers: Handlers = {
      credential: {
        streamCredential: async function* () {
          yield { credential: next('a.b.c') };
          yield { credential: next('d.e.f') };
          throw refusal(Code.FailedPrecondition, 'TASK_CLOSED', 'The task is closed; open another.');
        },
      },
    };
    const { code, stderr } = await cli(handlers, ...stream, '--format', 'token', '--output', file);
    expect(code).toBe(6);
    expect(stderr).toBe('leasehold: The task is closed; open another. (TASK_CLOSED)\n');
    expect(await readFile(file, 'utf8')).toBe('d.e.f\n');
  });

  test('a stream that breaks after a credential is not begun again by itself: that would be another issue', async () => {
    let calls = 0;
    const handlers: Handlers = {
      credential: {
        streamCredential: async function* () {
          calls++;
          yield { credential: next('a.b.c') };
          throw refusal(Code.Unavailable, 'SHUTTING_DOWN', 'This replica is stopping; call again.');
        },
      },
    };
    const { code } = await cli(handlers, ...stream, '--format', 'token');
    expect(code).toBe(7);
    expect(calls).toBe(1);
  });
});
