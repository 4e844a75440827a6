import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { FaultPoint } from '../../src/domain/telemetry.ts';
import {
  brokerRows,
  callers,
  eventually,
  leasesOf,
  loginOf,
  ordersSeenBy,
  refusalOf,
  retrying,
} from '../faults/support.ts';
import { startInProcess, startProcess } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import { describeVault } from '../support/vault.ts';
import { createVaultEstate, ledger, openVaultTask, own, type VaultEstate } from './estate.ts';

const refused = { code: '28P01' };

/** Every lease has an outcome, and the target has none of the logins that Vault made. */
async function expectSettled(at: VaultEstate, taskId: string, timeout = 45_000) {
  await eventually(async () => {
    const [task] = await brokerRows(at.estate, 'SELECT state, settled_at FROM tasks WHERE task_id = $1', [taskId]);
    expect(task!['settled_at']).not.toBeNull();
  }, timeout);
  const leases = await leasesOf(at.estate, taskId);
  expect(leases.filter(({ state, outcome }) => state !== 'settled' || outcome === null)).toEqual([]);
  return leases;
}

/** Faults 10 and 11: the server, and the broker's own login at it. */
describeVault('a Vault that fails', () => {
  let at: VaultEstate;
  let network: TestProxy;
  let broker: Awaited<ReturnType<typeof startInProcess>>;
  let agent: ReturnType<typeof callers>['agent'];
  let orchestrator: ReturnType<typeof callers>['orchestrator'];
  beforeAll(async () => {
    at = await createVaultEstate('vfault', {
      storage: 'file',
      address: async (vault) => {
        network = await startProxy('127.0.0.1', Number(new URL(vault.address).port));
        return `http://127.0.0.1:${network.port}`;
      },
    });
    broker = await startInProcess(at.estate);
    ({ agent, orchestrator } = callers(at.estate));
  });
  afterAll(async () => {
    await broker?.stop();
    await network?.close();
    await at?.remove();
  });
  afterEach(async () => {
    await network.mode('pass');
  });

  const issue = async (taskId: string) => (await agent.issueCredential({ taskId, ...ledger })).credential;
  const working = (taskId: string) => retrying(() => issue(taskId), ['PROVIDER_UNAVAILABLE', 'IN_PROGRESS'], 30_000);

  test('sealed: refused with a reason in time; a close waits for it, and settles when it is unsealed', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    await at.vault.seal();
    const refusal = await refusalOf(issue(taskId));
    expect(refusal).toMatchObject({ code: 'Unavailable', reason: 'PROVIDER_UNAVAILABLE' });
    expect(refusal.message).toMatch(/sealed|cannot be reached|does not answer/);
    await orchestrator.closeTask({ taskId });
    // The database does not need Vault to let it in: it is said to be unsettled, not revoked.
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    expect((await leasesOf(at.estate, taskId))[0]).toMatchObject({ state: 'settling', outcome: null });
    await at.vault.unseal();
    await expectSettled(at, taskId);
    await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject(refused);
  });

  test('hung: calls end within their time, nothing is handed out, and what was asked meanwhile leaves nothing behind', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    const before = await at.madeLogins();
    await network.mode('mute');
    const refusal = await refusalOf(issue(taskId));
    expect(refusal.reason).toBe('PROVIDER_UNAVAILABLE');
    expect(refusal.message).toMatch(/did not say whether|cannot be reached/);
    await network.mode('pass');
    // A login was made, and nobody has it.
    expect((await at.madeLogins()).length).toBeGreaterThanOrEqual(before.length);
    const next = await working(taskId);
    expect(await ordersSeenBy(loginOf(next))).toBe(3);
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    await orchestrator.closeTask({ taskId });
    await expectSettled(at, taskId);
    expect(await at.madeLogins()).toEqual([]);
  });

  test('hung for a revocation: the close is not called done before the target has lost the login', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    await network.mode('hang');
    await orchestrator.closeTask({ taskId });
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    expect((await leasesOf(at.estate, taskId))[0]!['outcome']).toBeNull();
    await network.mode('pass');
    await expectSettled(at, taskId);
    await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject(refused);
  });

  test('killed and restarted: the task goes on with the same credential, and issues again', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    await at.vault.kill();
    expect((await refusalOf(issue(taskId))).reason).toBe('PROVIDER_UNAVAILABLE');
    await at.vault.start();
    const next = await working(taskId);
    expect(await ordersSeenBy(loginOf(next))).toBe(3);
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    await orchestrator.closeTask({ taskId });
    await expectSettled(at, taskId);
    expect(await at.madeLogins()).toEqual([]);
  });

  test('the broker’s own token is revoked: it logs in again, and no task is the worse for it', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    const { keys } = await at.vault.root<{ keys: string[] }>('LIST', 'auth/token/accessors');
    let ended = 0;
    for (const accessor of keys) {
      const looked = await at.vault.request({
        method: 'POST',
        path: 'auth/token/lookup-accessor',
        token: at.vault.rootToken,
        body: { accessor },
      });
      const data = looked.json['data'] as { path?: string } | undefined;
      if (data?.path !== 'auth/approle/login') continue;
      await at.vault.root('POST', 'auth/token/revoke-accessor', { accessor });
      ended += 1;
    }
    expect(ended).toBeGreaterThan(0);
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    await agent.returnCredential({ leaseId: first!.lease!.leaseId });
    await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject(refused);
    const other = await openVaultTask(at.estate);
    expect(await ordersSeenBy(loginOf(await issue(other)))).toBe(3);
    for (const id of [taskId, other]) await orchestrator.closeTask({ taskId: id, wait: true });
  });

  test('a task’s token is revoked underneath: its logins are gone and said to be, and the task goes on with another', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    const [row] = await brokerRows(at.estate, 'SELECT accessor FROM task_tokens WHERE task_id = $1', [taskId]);
    await at.vault.root('POST', 'auth/token/revoke-accessor', { accessor: row!['accessor'] });
    await eventually(async () => {
      await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject(refused);
    });
    const next = await working(taskId);
    expect(await ordersSeenBy(loginOf(next))).toBe(3);
    // The next heartbeat finds it; brought forward here.
    await brokerRows(at.estate, 'UPDATE task_tokens SET due_at = now() WHERE task_id = $1', [taskId]);
    await eventually(async () => {
      const leases = await leasesOf(at.estate, taskId);
      expect(leases.find(({ lease_id }) => lease_id === first!.lease!.leaseId)).toMatchObject({
        state: 'settled',
        settle_cause: 'lost',
      });
    });
    await orchestrator.closeTask({ taskId, wait: true });
  });

  test('its database is down at a close: the lease keeps failing, aloud, and is settled when the database is back', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    // Vault's own login at the target is shut, so that its engine fails and Vault does not.
    const admin = await asSuperuser(at.estate.targetUrl, async (client) => {
      const { rows } = await client.query<{ name: string }>(
        `SELECT rolname::text AS name FROM pg_roles WHERE rolname LIKE $1 || '_vault%'`,
        [at.estate.target.database],
      );
      const set = async (login: string) => {
        for (const { name } of rows) {
          await client.query(`ALTER ROLE ${name} ${login}`);
          await client.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1', [name]);
        }
      };
      await set('NOLOGIN');
      return rows.map(({ name }) => name);
    });
    expect(admin.length).toBeGreaterThan(0);
    await orchestrator.closeTask({ taskId });
    await eventually(async () => {
      expect((await leasesOf(at.estate, taskId))[0]).toMatchObject({ state: 'settling', outcome: null });
      expect((await leasesOf(at.estate, taskId))[0]!['settle_error']).toMatch(/Vault server main/);
    });
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    await asSuperuser(at.estate.targetUrl, async (client) => {
      for (const name of admin) await client.query(`ALTER ROLE ${name} LOGIN`);
    });
    await expectSettled(at, taskId, 60_000);
    await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject(refused);
  }, 120_000);

  test('429: issuing waits as long as Vault asks, with a reason, and revocations go on', async () => {
    const taskId = await openVaultTask(at.estate);
    const first = await issue(taskId);
    const quota = { path: 'database/creds/read', rate: 0.01, interval: '10s' };
    await at.vault.root('POST', 'sys/quotas/rate-limit/leasehold', quota);
    try {
      const refusals = await Promise.all(Array.from({ length: 4 }, () => issue(taskId).catch(() => undefined)));
      expect(refusals).toContain(undefined);
      const refusal = await refusalOf(issue(taskId));
      expect(refusal.reason).toBe('PROVIDER_UNAVAILABLE');
      expect(refusal.message).toMatch(/too much to do|does not answer as it should/);
      await agent.returnCredential({ leaseId: first!.lease!.leaseId });
      await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject(refused);
    } finally {
      await at.vault.root('DELETE', 'sys/quotas/rate-limit/leasehold');
    }
    const next = await working(taskId);
    expect(await ordersSeenBy(loginOf(next))).toBe(3);
    await orchestrator.closeTask({ taskId });
    await expectSettled(at, taskId);
  });

  test('a close races with issues: everything that was made is gone', async () => {
    const taskId = await openVaultTask(at.estate);
    const calls = Array.from({ length: 24 }, () => issue(taskId).catch(() => undefined));
    await new Promise((resolve) => setTimeout(resolve, 120));
    await orchestrator.closeTask({ taskId });
    const issued = (await Promise.all(calls)).filter((credential) => credential !== undefined);
    const leases = await expectSettled(at, taskId);
    expect(leases.length).toBeGreaterThanOrEqual(issued.length);
    await eventually(async () => expect(await at.madeLogins()).toEqual([]));
    for (const credential of issued) await expect(ordersSeenBy(loginOf(credential))).rejects.toMatchObject(refused);
  });
});

const points: FaultPoint[] = ['issue.pending-committed', 'issue.credential-made', 'issue.activated'];

/** Fault 1: each with a tool whose path is the broker's alone, and one whose path is not. */
describeVault('a broker killed while it issues a login of Vault', () => {
  for (const [name, access] of [
    ['that can be listed', own],
    ['that cannot be listed', ledger],
  ] as const) {
    describe(name, () => {
      test.for(points)('at %s leaves none behind, and the agent’s retry works', { timeout: 120_000 }, async (point) => {
        const at = await createVaultEstate('vkill', { server: { issueTimeout: '1s' } });
        try {
          const doomed = await startProcess(at.estate, { killAt: point });
          const taskId = await openVaultTask(at.estate);
          const request = { requestId: crypto.randomUUID(), taskId, ...access };
          expect((await refusalOf(callers(at.estate).agent.issueCredential(request))).reason).toBe('');
          expect(await doomed.exited).toEqual({ code: null, signal: 'SIGKILL' });
          expect(await at.madeLogins()).toHaveLength(point === 'issue.pending-committed' ? 0 : 1);
          const broker = await startProcess(at.estate);
          try {
            const { agent, orchestrator } = callers(at.estate);
            const { credential } = await retrying(() => agent.issueCredential(request), undefined, 40_000);
            expect(await ordersSeenBy(loginOf(credential))).toBe(3);
            // The one that was made and lost is gone while the task lives on.
            await eventually(async () => expect(await at.madeLogins()).toEqual([loginOf(credential).username]), 30_000);
            expect((await leasesOf(at.estate, taskId)).filter(({ state }) => state === 'active')).toHaveLength(1);
            await orchestrator.closeTask({ taskId });
            const leases = await expectSettled(at, taskId);
            expect(await at.madeLogins()).toEqual([]);
            // What Vault could not tell is not called revoked.
            const unsure =
              point === 'issue.pending-committed' || (point === 'issue.credential-made' && access === ledger);
            expect(leases[0]!['outcome']).toBe(unsure ? 'bounded' : 'revoked');
          } finally {
            await broker.stop();
          }
        } finally {
          await at.remove();
        }
      });
    });
  }
});

/** Fault 1, the other way round: between the login at the target and the lease at Vault. */
describeVault('a Vault killed while it makes a login', () => {
  test('hands nothing out; what it left at the target ends by the date that Vault gave it', async () => {
    const at = await createVaultEstate('vstray', { storage: 'file' });
    const broker = await startInProcess(at.estate);
    try {
      const { agent, orchestrator } = callers(at.estate);
      const taskId = await openVaultTask(at.estate);
      await agent.issueCredential({ taskId, ...ledger });
      const [before] = await at.madeLogins();
      await makeLoginsSlowly(at);
      const refusal = refusalOf(agent.issueCredential({ taskId, ...ledger }));
      await eventually(async () => expect(await at.madeLogins()).toHaveLength(2));
      await at.vault.kill();
      expect(await refusal).toMatchObject({ code: 'Unavailable', reason: 'PROVIDER_UNAVAILABLE' });
      await at.vault.start();
      await orchestrator.closeTask({ taskId });
      const leases = await expectSettled(at, taskId);
      // Vault has never heard of it, so nobody may call it revoked. It was never told to anybody, and has an end of its own.
      expect(leases.map(({ outcome }) => outcome)).toEqual(['revoked', 'bounded']);
      const strays = await asSuperuser(at.estate.targetUrl, async (client) => {
        const { rows } = await client.query<{ name: string; until: Date }>(
          `SELECT rolname::text AS name, rolvaliduntil AS until FROM pg_roles WHERE rolname LIKE 'v-' || $1 || '-%'`,
          [at.estate.target.database],
        );
        for (const { name } of rows) await client.query(`DROP ROLE "${name}"`);
        return rows;
      });
      expect(strays).toHaveLength(1);
      expect(strays[0]!.name).not.toBe(before);
      expect(strays[0]!.until.getTime()).toBeLessThan(Date.now() + 601_000);
    } finally {
      await broker.stop();
      await at.remove();
    }
  }, 120_000);
});

/** Fault 1, as it was found by many kills: Vault gives up a read whose caller is gone, and the database is committing it. */
describeVault('a broker killed while the database commits a login of Vault', () => {
  test.for([
    ['a sweep takes away the login that no lease of Vault’s names', 'revoked', { tier: 'sweep: creds/sweep' }],
    ['without a sweep it is called bounded, by the date that Vault gave it', 'bounded', {}],
  ] as const)('%s', { timeout: 120_000 }, async ([, outcome, more]) => {
    const at = await createVaultEstate('vcommit', { ...more, server: { issueTimeout: '1s' } });
    try {
      const doomed = await startProcess(at.estate);
      const taskId = await openVaultTask(at.estate);
      const { agent } = callers(at.estate);
      const { credential } = await agent.issueCredential({ taskId, ...ledger });
      await agent.returnCredential({ leaseId: credential!.lease!.leaseId });
      await commitLoginsSlowly(at);
      const lost = refusalOf(callers(at.estate).agent.issueCredential({ taskId, ...ledger }));
      await eventually(async () => expect(await commitsUnderWay(at)).toBe(1));
      await doomed.kill();
      expect((await lost).reason).toBe('');
      // There it is, and Vault has an error and no lease.
      await eventually(async () => expect(await at.madeLogins()).toHaveLength(1));
      const path = 'sys/leases/lookup/database/creds/read';
      expect(await at.vault.request({ method: 'LIST', path, token: at.vault.rootToken })).toMatchObject({
        status: 404,
      });
      const broker = await startProcess(at.estate);
      try {
        await callers(at.estate).orchestrator.closeTask({ taskId });
        const [, lease] = await expectSettled(at, taskId);
        expect(lease!['outcome']).toBe(outcome);
        const left = await loginsUntil(at);
        expect(left).toHaveLength(outcome === 'revoked' ? 0 : 1);
        for (const until of left) expect((lease!['dead_by'] as Date).getTime()).toBeGreaterThanOrEqual(until.getTime());
      } finally {
        await broker.stop();
      }
    } finally {
      await at.remove();
    }
  });

  test('a sweep leaves alone what lives, and comes when it has ended', { timeout: 120_000 }, async () => {
    const at = await createVaultEstate('vsweep', { tier: 'sweep: creds/sweep', server: { issueTimeout: '1s' } });
    try {
      const doomed = await startProcess(at.estate);
      const taskId = await openVaultTask(at.estate);
      const { credential } = await callers(at.estate).agent.issueCredential({ taskId, ...ledger });
      await commitLoginsSlowly(at);
      const lost = refusalOf(callers(at.estate).agent.issueCredential({ taskId, ...ledger }));
      await eventually(async () => expect(await commitsUnderWay(at)).toBe(1));
      await doomed.kill();
      await lost;
      const broker = await startProcess(at.estate);
      try {
        const { agent } = callers(at.estate);
        await eventually(async () => {
          const waits = (await leasesOf(at.estate, taskId)).map(({ settle_error: why }) => String(why));
          expect(waits.join()).toMatch(/a sweep would take theirs too/);
        });
        expect(await ordersSeenBy(loginOf(credential))).toBe(3);
        expect(await at.madeLogins()).toHaveLength(2);
        await agent.returnCredential({ leaseId: credential!.lease!.leaseId });
        await eventually(async () => expect(await at.madeLogins()).toEqual([]));
        await eventually(async () => {
          const outcomes = (await leasesOf(at.estate, taskId)).map((lease) => lease['outcome']);
          expect(outcomes).toEqual(['returned', 'revoked']);
        });
      } finally {
        await broker.stop();
      }
    } finally {
      await at.remove();
    }
  });
});

/** A COMMIT that takes its time and cannot be called back: a cancelled one goes through. */
async function commitLoginsSlowly(at: VaultEstate): Promise<void> {
  await asSuperuser(at.estate.targetUrl, (client) =>
    client.query(`CREATE SCHEMA slow;
      CREATE TABLE slow.commits (at timestamptz DEFAULT now());
      GRANT USAGE ON SCHEMA slow TO PUBLIC;
      GRANT INSERT ON slow.commits TO PUBLIC;
      CREATE FUNCTION slow.wait() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(20); RETURN NULL; EXCEPTION WHEN query_canceled THEN RETURN NULL; END $$;
      CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow.commits DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION slow.wait()`),
  );
  const { creation_statements: usual } = await at.vault.root<{ creation_statements: string[] }>(
    'GET',
    'database/roles/read',
  );
  await at.vault.root('POST', 'database/roles/read', {
    creation_statements: [...usual, 'INSERT INTO slow.commits DEFAULT VALUES'],
  });
}

async function commitsUnderWay(at: VaultEstate): Promise<number> {
  return await asSuperuser(at.estate.targetUrl, async (client) => {
    const { rows } = await client.query<{ n: number }>(
      `SELECT count(*)::int AS n FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND query ILIKE 'commit%' AND wait_event = 'PgSleep'`,
    );
    return rows[0]!.n;
  });
}

async function loginsUntil(at: VaultEstate): Promise<Date[]> {
  return await asSuperuser(at.estate.targetUrl, async (client) => {
    const { rows } = await client.query<{ until: Date }>(
      `SELECT rolvaliduntil AS until FROM pg_roles WHERE rolname LIKE 'v-' || $1 || '-%'`,
      [at.estate.target.database],
    );
    return rows.map(({ until }) => until);
  });
}

/** Logins that are there for everybody while Vault's own transaction is still under way. */
async function makeLoginsSlowly(at: VaultEstate): Promise<void> {
  const target = new URL(at.estate.targetUrl);
  const connection = `host=${target.hostname} port=${target.port} dbname=${target.pathname.slice(1)} user=${decodeURIComponent(target.username)} password=${decodeURIComponent(target.password)}`;
  await asSuperuser(at.estate.targetUrl, (client) =>
    client.query(`CREATE EXTENSION dblink;
      CREATE SCHEMA slow;
      GRANT USAGE ON SCHEMA slow TO PUBLIC;
      CREATE FUNCTION slow.make_login(name text, password text, until text) RETURNS text SECURITY DEFINER LANGUAGE sql AS $$
        SELECT public.dblink_exec('${connection}', format(
          'CREATE ROLE %I LOGIN PASSWORD %L VALID UNTIL %L IN ROLE warehouse_read', name, password, until)) $$`),
  );
  await at.vault.root('POST', 'database/roles/read', {
    db_name: at.estate.target.database,
    creation_statements: [`SELECT slow.make_login('{{name}}', '{{password}}', '{{expiration}}')`, 'SELECT pg_sleep(5)'],
    default_ttl: '10m',
  });
}
