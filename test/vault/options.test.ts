import { describe, expect, test } from 'vitest';
import type { Lease } from '../../src/domain/model.ts';
import { createBreaker } from '../../src/providers/vault/breaker.ts';
import { VaultFailure } from '../../src/providers/vault/failure.ts';
import { formatHandle, parseHandle, type HandlePart } from '../../src/providers/vault/handle.ts';
import { endOf, materialOf, secretOf } from '../../src/providers/vault/material.ts';
import { parseVaultTierOptions, validateVaultTierOptions, vaultTierFault } from '../../src/providers/vault/options.ts';
import { fillParameters } from '../../src/providers/vault/parameters.ts';

const good = { server: 'main', mount: 'database', path: 'creds/reader' };
const faults = (change: object) =>
  validateVaultTierOptions({ ...good, ...change }, 'o').map(({ path, message }) => `${path}: ${message}`);

describe('options of a tier', () => {
  test('the plain case, and what follows when nothing is said', () => {
    expect(faults({})).toEqual([]);
    expect(parseVaultTierOptions(good)).toMatchObject({
      path: 'database/creds/reader',
      method: 'read',
      exclusive: false,
      sweep: undefined,
    });
    expect(parseVaultTierOptions({ ...good, sweep: 'creds/sweep' }).sweep).toBe('database/creds/sweep');
  });

  test.for([
    [{ mount: 'sys' }, 'o.mount'],
    [{ mount: 'auth/token' }, 'o.mount'],
    [{ path: '../sys/raw' }, 'o.path'],
    [{ path: 'creds/reader?ttl=9h' }, 'o.path'],
    [{ path: 'creds/' }, 'o.path'],
    [{ method: 'delete' }, 'o.method'],
    [{ server: 'Main' }, 'o.server'],
    [{ parameters: { ttl: '{{password}}' } }, 'o.parameters.ttl'],
    [{ parameters: ['x'] }, 'o.parameters'],
    [{ tokenRole: 'a/b' }, 'o.tokenRole'],
    [{ sweep: '../sys/raw' }, 'o.sweep'],
    [{ sweep: 'creds/reader' }, 'o.sweep'],
    [{ sweep: 'data/x', leaseless: true, endsWithin: '1h' }, 'o.sweep'],
    [{ leaseless: true }, 'o.endsWithin'],
    [{ endsWithin: '1h' }, 'o.endsWithin'],
    [{ responseWrapping: '60s' }, 'o.responseWrapping'],
    [{ leaseless: true, endsWithin: 'soon' }, 'o.endsWithin'],
    [{ leaseless: true, expiryField: 'expiration', responseWrapping: '60s' }, 'o.endsWithin'],
    [{ login: { host: 'x' } }, 'o.login.database'],
    [{ login: { host: 'x', database: 'y', user: 'z' } }, 'o.login.user'],
    [{ surprise: 1 }, 'o.surprise'],
  ] as const)('%o is refused at %s', ([change, path]) => {
    const said = faults(change);
    expect(said.length).toBeGreaterThan(0);
    expect(said[0]!.startsWith(`${path}: `), said.join('\n')).toBe(true);
  });

  test('a secret that Vault cannot take back is not called immediate', () => {
    const leaseless = { ...good, leaseless: true, endsWithin: '1h' };
    expect(vaultTierFault(leaseless, 'immediate', [])).toMatchObject({ path: ['revocation'] });
    expect(vaultTierFault(leaseless, 'bounded', [])).toBeUndefined();
  });

  test('a parameter takes only what the tier declares', () => {
    const options = { ...good, parameters: { role: 'x-{{args.region}}' } };
    expect(vaultTierFault(options, 'immediate', [])).toMatchObject({ path: ['vault', 'parameters', 'role'] });
    expect(vaultTierFault(options, 'immediate', ['region'])).toBeUndefined();
  });
});

test('parameters are filled with what is known of the lease, and one whose argument was not given is left out', () => {
  const lease = {
    leaseId: 'lse_1',
    taskId: 'tsk_1',
    agent: 'analyst',
    tool: 'cloud',
    tier: 'read',
    expiresAt: 90_500,
    terms: { arguments: { values: { region: 'eu{{ttl}}', count: 3 }, digest: '' } },
  } as unknown as Lease;
  const filled = fillParameters(
    {
      ttl: '{{ttl}}',
      name: '{{agent}}-{{ task_id }}',
      where: '{{args.region}}',
      n: '{{args.count}}',
      none: '{{args.x}}',
      fixed: true,
    },
    { lease },
    30_000,
  );
  // What an agent says is a value, never a template.
  expect(filled).toEqual({ ttl: '60s', name: 'analyst-tsk_1', where: 'eu{{ttl}}', n: '3', fixed: true });
});

describe('a handle', () => {
  const parts: HandlePart[] = [
    { kind: 'leased', accessor: 'AbCdEfGh12345678', vaultLease: 'database/creds/reader/JLT8RYvWL0WnVnsTIDVRphdB' },
    { kind: 'asked', accessor: 'AbCdEfGh12345678.abc', path: 'database/creds/reader', at: 17, exclusive: true },
    { kind: 'asked', accessor: 'AbCdEfGh12345678', path: 'a/b', at: 18, exclusive: false },
    { kind: 'asked', accessor: 'AbCdEfGh12345678', path: 'a/b', at: 18, exclusive: true, life: 605_000 },
    {
      kind: 'asked',
      accessor: 'AbCdEfGh12345678',
      path: 'a/b:c',
      at: 18,
      exclusive: false,
      life: 605_000,
      sweep: { name: 'abcdefghijk9', role: 'leasehold-task', path: 'a/s:weep' },
    },
    {
      kind: 'asked',
      accessor: 'AbCdEfGh12345678',
      path: 'a/b',
      at: 18,
      exclusive: true,
      sweep: { name: 'abcdefghijk9', role: 'r', path: 'a/sweep' },
    },
    { kind: 'leaseless', end: 19 },
    { kind: 'wrapped', accessor: 'AbCdEfGh12345678', end: 20 },
    { kind: 'token', accessor: 'AbCdEfGh12345678' },
  ];

  test('says the same when it is read back, alone and together', () => {
    for (const part of parts) {
      const handle = { server: 'main', parts: [part] };
      expect(parseHandle(formatHandle(handle))).toEqual(handle);
    }
    expect(parseHandle(formatHandle({ server: 'main', parts }))).toEqual({ server: 'main', parts });
    expect(parseHandle('vault:main/')).toEqual({ server: 'main', parts: [] });
  });

  test.for([
    'main/x',
    'vault:/x',
    'vault:Main/x',
    'vault:main',
    'vault:main/a=../x',
    'vault:main/AbCdEfGh1=../x',
    'vault:main/x y',
    'vault:main/AbCdEfGh1!18~sshort~role~a/sweep~:a/b',
    'vault:main/AbCdEfGh1!18~sabcdefghijk9~role~../sweep~:a/b',
  ])('%s is refused', (handle) => {
    expect(() => parseHandle(handle)).toThrow(/not the handle/);
  });
});

describe('what comes back from an engine', () => {
  const options = parseVaultTierOptions(good);
  test('the second version of kv has its secret one level deeper', () => {
    const secret = secretOf({ data: { data: { a: 1 }, metadata: { version: 2 } } });
    expect(materialOf(secret, options)).toEqual({ kind: 'vault_secret', data: { a: 1 } });
  });

  test('a login needs both of its halves', () => {
    const login = { ...options, login: { host: 'h', port: 1, database: 'd', sslmode: 'disable' } };
    expect(() => materialOf(secretOf({ data: { username: 'u' } }), login)).toThrow(/no username and password/);
  });

  test('its end is what it says, else what the tier says', () => {
    const of = (data: object, expiryField?: string, endsWithin?: number) =>
      endOf(secretOf({ data }), { expiryField, endsWithin }, 1_000);
    expect(of({ expiration: 1_800_000_000 }, 'expiration')).toBe(1_800_000_000_000);
    expect(of({ until: '2027-01-15T08:00:00Z' }, 'until')).toBe(Date.parse('2027-01-15T08:00:00Z'));
    expect(of({}, 'until', 500)).toBe(1_500);
    expect(of({ until: 'soon' }, 'until')).toBeUndefined();
  });
});

describe('the breaker', () => {
  const failure = (status: number | undefined, retryAfterMs?: number) =>
    new VaultFailure('x', { status, outcome: 'refused', retryAfterMs });
  const at = { now: 1_000_000 };
  const breaker = () => createBreaker('main', { now: () => at.now });

  test('opens after five failures, lets one through after its pause, and closes when that one is answered', () => {
    const it = breaker();
    for (let n = 0; n < 4; n++) it.failed(failure(undefined));
    it.admit();
    it.failed(failure(503));
    expect(() => it.admit()).toThrow(/does not answer/);
    at.now += 1_000;
    it.admit();
    expect(() => it.admit()).toThrow();
    // That one may have ended without a word, at something else.
    at.now += 1_000;
    it.admit();
    it.succeeded();
    it.admit();
    it.admit();
  });

  test('a refusal is an answer, and opens nothing', () => {
    const it = breaker();
    for (let n = 0; n < 50; n++) it.failed(failure(403));
    it.admit();
  });

  test('429 is waited for as long as Vault asks', () => {
    const it = breaker();
    it.failed(failure(429, 7_000));
    at.now += 6_900;
    expect(() => it.admit()).toThrow();
    at.now += 100;
    it.admit();
  });
});
