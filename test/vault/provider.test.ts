import { X509Certificate } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { LeaseOutcome, LeaseState } from '../../src/gen/leasehold/v1/common_pb.js';
import { callers, eventually, leasesOf, loginOf, ordersSeenBy, refusalOf, brokerRows } from '../faults/support.ts';
import { startInProcess } from '../support/broker.ts';
import { describeVault } from '../support/vault.ts';
import {
  certificates,
  createVaultEstate,
  ledger,
  openVaultTask,
  settings,
  short,
  wrapped,
  type VaultEstate,
} from './estate.ts';

/** Points 1, 2 and 5 of the Vault issue, over the broker's own doors, with a real Vault and a real PostgreSQL. */
describeVault('credentials from Vault', () => {
  let at: VaultEstate;
  let broker: Awaited<ReturnType<typeof startInProcess>>;
  let agent: ReturnType<typeof callers>['agent'];
  let orchestrator: ReturnType<typeof callers>['orchestrator'];
  beforeAll(async () => {
    at = await createVaultEstate('vprov');
    await at.vault.root('POST', 'kv/data/app/settings', { data: { api_key: 'kv-canary-1', region: 'eu' } });
    broker = await startInProcess(at.estate);
    ({ agent, orchestrator } = callers(at.estate));
  });
  afterAll(async () => {
    await broker?.stop();
    await at?.remove();
  });

  const tokensOf = (taskId: string) => brokerRows(at.estate, 'SELECT * FROM task_tokens WHERE task_id = $1', [taskId]);
  const known = async (accessor: unknown) =>
    (await at.vault.request({
      method: 'POST',
      path: 'auth/token/lookup-accessor',
      token: at.vault.rootToken,
      body: { accessor },
    })) as { status: number; json: { data?: Record<string, unknown> } };

  test('a login from Vault works, and dies with its task at the target', async () => {
    const taskId = await openVaultTask(at.estate);
    const { credential } = await agent.issueCredential({ taskId, ...ledger });
    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
    const { summary } = await orchestrator.closeTask({ taskId, wait: true });
    expect(summary).toMatchObject({ unsettled: 0, revoked: 1 });
    await expect(ordersSeenBy(loginOf(credential))).rejects.toMatchObject({ code: '28P01' });
    expect(await at.madeLogins()).not.toContain(loginOf(credential).username);
  });

  test('a task has one token at Vault: orphan, periodic, no longer than the task, known by its accessor alone', async () => {
    const taskId = await openVaultTask(at.estate, { ttl: { seconds: 600n } });
    const issued = await Promise.all(Array.from({ length: 5 }, () => agent.issueCredential({ taskId, ...ledger })));
    const [row, ...more] = await tokensOf(taskId);
    expect(more).toEqual([]);
    const token = (await known(row!['accessor'])).json.data!;
    expect(token).toMatchObject({ orphan: true, policies: ['leasehold-task'], renewable: true });
    // Unless it is renewed, it dies within the role's period.
    expect(token['ttl']).toBeLessThanOrEqual(60);
    expect((token['meta'] as Record<string, string>)['task_id']).toBe(taskId);
    expect(token['explicit_max_ttl']).toBeGreaterThan(590);
    expect(token['explicit_max_ttl']).toBeLessThanOrEqual(600);
    await orchestrator.closeTask({ taskId, wait: true });
    expect((await known(row!['accessor'])).status).not.toBe(200);
    expect(await tokensOf(taskId)).toEqual([]);
    for (const { credential } of issued) {
      await expect(ordersSeenBy(loginOf(credential))).rejects.toMatchObject({ code: '28P01' });
    }
  });

  test('one of several is returned alone', async () => {
    const taskId = await openVaultTask(at.estate);
    const { credential: first } = await agent.issueCredential({ taskId, ...ledger });
    const { credential: second } = await agent.issueCredential({ taskId, ...ledger });
    const { lease } = await agent.returnCredential({ leaseId: first!.lease!.leaseId });
    expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.RETURNED });
    await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject({ code: '28P01' });
    expect(await ordersSeenBy(loginOf(second))).toBe(3);
    await orchestrator.closeTask({ taskId, wait: true });
  });

  test('a retry with the same request_id gives another login under the same lease, and the earlier one is dead', async () => {
    const taskId = await openVaultTask(at.estate);
    const request = { requestId: crypto.randomUUID(), taskId, ...ledger };
    const { credential: first } = await agent.issueCredential(request);
    const { credential: again } = await agent.issueCredential(request);
    expect(again!.lease!.leaseId).toBe(first!.lease!.leaseId);
    expect(await ordersSeenBy(loginOf(again))).toBe(3);
    await expect(ordersSeenBy(loginOf(first))).rejects.toMatchObject({ code: '28P01' });
    expect((await leasesOf(at.estate, taskId)).map(({ state }) => state)).toEqual(['active']);
    await orchestrator.closeTask({ taskId, wait: true });
    await expect(ordersSeenBy(loginOf(again))).rejects.toMatchObject({ code: '28P01' });
  });

  test('what Vault grants is believed: asked for more than its most, the lease ends when Vault says', async () => {
    const taskId = await openVaultTask(at.estate);
    const before = Date.now();
    const { credential } = await agent.issueCredential({ taskId, ...short });
    const ends = Number(credential!.lease!.expireTime!.seconds) * 1_000;
    expect(ends).toBeGreaterThan(before + 3_500);
    expect(ends).toBeLessThanOrEqual(Date.now() + 9_000);
    await orchestrator.closeTask({ taskId, wait: true });
  });

  test('a stream goes on past the most that one Vault lease can live, without a gap, and the old ones are settled', async () => {
    const taskId = await openVaultTask(at.estate);
    const gone = new AbortController();
    const logins: string[] = [];
    let gaps = 0;
    const started = Date.now();
    try {
      let present: ReturnType<typeof loginOf> | undefined;
      for await (const { credential } of agent.streamCredential({ taskId, ...short }, { signal: gone.signal })) {
        // The one before still works while its successor arrives.
        if (present !== undefined && (await ordersSeenBy(present).catch(() => 0)) !== 3) gaps += 1;
        present = loginOf(credential);
        logins.push(present.username);
        expect(await ordersSeenBy(present)).toBe(3);
        if (Date.now() - started > 10_000) gone.abort();
      }
    } catch (error) {
      if (!gone.signal.aborted) throw error;
    }
    expect(new Set(logins).size).toBeGreaterThanOrEqual(3);
    expect(gaps).toBe(0);
    await eventually(async () => {
      const states = (await leasesOf(at.estate, taskId)).map(({ state }) => state);
      expect(states.filter((state) => state !== 'settled')).toHaveLength(1);
    });
    await orchestrator.closeTask({ taskId, wait: true });
    const left = await at.madeLogins();
    expect(logins.filter((login) => left.includes(login))).toEqual([]);
  });

  test('a task that is extended gets a second token, and the first is ended when its leases are', async () => {
    const taskId = await openVaultTask(at.estate, { ttl: { seconds: 60n } });
    const { credential: first } = await agent.issueCredential({ taskId, ...ledger });
    await orchestrator.extendTask({
      taskId,
      deadline: { seconds: BigInt(Math.floor(Date.now() / 1_000) + 900), nanos: 0 },
    });
    const { credential: second } = await agent.issueCredential({ taskId, ...ledger });
    expect(second!.lease!.expireTime!.seconds).toBeGreaterThan(first!.lease!.expireTime!.seconds);
    const tokens = await tokensOf(taskId);
    expect(tokens.map(({ retired }) => retired).sort()).toEqual([false, true]);
    expect(await ordersSeenBy(loginOf(first))).toBe(3);
    await agent.returnCredential({ leaseId: first!.lease!.leaseId });
    const old = tokens.find(({ retired }) => retired === true)!;
    // The next heartbeat ends it; brought forward here.
    await brokerRows(at.estate, 'UPDATE task_tokens SET due_at = now() WHERE task_id = $1', [taskId]);
    await eventually(async () => expect((await known(old['accessor'])).status).not.toBe(200));
    expect(await ordersSeenBy(loginOf(second))).toBe(3);
    await orchestrator.closeTask({ taskId, wait: true });
  });

  test('a secret that Vault keeps no lease of is bounded, never called revoked', async () => {
    const taskId = await openVaultTask(at.estate);
    const { credential } = await agent.issueCredential({ taskId, ...settings });
    expect(credential!.material).toMatchObject({
      case: 'vaultSecret',
      value: { data: { api_key: 'kv-canary-1', region: 'eu' } },
    });
    const { lease } = await agent.returnCredential({ leaseId: credential!.lease!.leaseId });
    expect(lease).toMatchObject({ state: LeaseState.SETTLED, outcome: LeaseOutcome.BOUNDED });
    expect(Number(lease!.deadBy!.seconds) * 1_000).toBeGreaterThan(Date.now() + 3_500_000);
    await orchestrator.closeTask({ taskId, wait: true });
  });

  test('a certificate is made for this agent and this life, by parameters that the tier fixes, and ends by itself', async () => {
    await at.vault.root('POST', 'sys/mounts/pki', { type: 'pki' });
    await at.vault.root('POST', 'pki/root/generate/internal', { common_name: 'agents.test', ttl: '10h' });
    const role = {
      allowed_domains: ['agents.test'],
      allow_subdomains: true,
      max_ttl: '1h',
      key_type: 'ec',
      key_bits: 256,
    };
    await at.vault.root('POST', 'pki/roles/agent', role);
    const taskId = await openVaultTask(at.estate);
    const { credential } = await agent.issueCredential({ taskId, ...certificates });
    if (credential?.material.case !== 'vaultSecret') throw new Error('not a secret');
    const certificate = new X509Certificate(credential.material.value.data!['certificate'] as string);
    expect(certificate.subject).toBe('CN=analyst.agents.test');
    const ends = Date.parse(certificate.validTo);
    expect(ends).toBeLessThanOrEqual(Number(credential.lease!.expireTime!.seconds) * 1_000 + 1_000);
    await orchestrator.closeTask({ taskId, wait: true });
    const [lease] = await leasesOf(at.estate, taskId);
    expect(lease).toMatchObject({ outcome: 'bounded', dead_by: new Date(ends) });
  });

  test('with response wrapping the agent fetches the secret itself, once; unfetched, a close keeps everybody from it', async () => {
    const taskId = await openVaultTask(at.estate);
    const unwrap = async (token: string) =>
      await at.vault.request({ method: 'POST', path: 'sys/wrapping/unwrap', token, body: {} });
    const issue = async () => {
      const { credential } = await agent.issueCredential({ taskId, ...wrapped });
      if (credential?.material.case !== 'wrappedSecret') throw new Error('not wrapped');
      return { lease: credential.lease!, ...credential.material.value };
    };
    const [fetched, kept] = [await issue(), await issue()];
    expect(fetched.address).toBe(at.vault.address);
    const answer = await unwrap(fetched.token);
    expect(answer.json).toMatchObject({ data: { data: { api_key: 'kv-canary-1' } } });
    expect((await unwrap(fetched.token)).status).toBe(400);
    await orchestrator.closeTask({ taskId, wait: true });
    expect((await unwrap(kept.token)).status).toBe(400);
    const outcomes = (await leasesOf(at.estate, taskId)).map(({ outcome }) => outcome);
    expect(outcomes).toEqual(['bounded', 'revoked']);
  });

  test('heartbeats keep a token beyond its period, whoever does them', async () => {
    await at.vault.root('POST', 'auth/token/roles/leasehold-task', {
      allowed_policies: ['leasehold-task'],
      orphan: true,
      renewable: true,
      token_period: '3s',
      token_type: 'service',
      token_no_default_policy: true,
    });
    const taskId = await openVaultTask(at.estate);
    const { credential } = await agent.issueCredential({ taskId, ...ledger });
    await sleep(7_000);
    expect(await ordersSeenBy(loginOf(credential))).toBe(3);

    // Fault: every broker is dead. Nobody renews, and Vault itself takes all of the task's logins within a period.
    await broker.stop();
    await eventually(async () => {
      await expect(ordersSeenBy(loginOf(credential))).rejects.toMatchObject({ code: '28P01' });
    }, 15_000);
    broker = await startInProcess(at.estate);
    await eventually(async () => {
      expect((await leasesOf(at.estate, taskId))[0]).toMatchObject({ state: 'settled', settle_cause: 'lost' });
    });
    // The task goes on with a token of its own.
    const { credential: next } = await agent.issueCredential({ taskId, ...ledger });
    expect(await ordersSeenBy(loginOf(next))).toBe(3);
    await orchestrator.closeTask({ taskId, wait: true });
    await at.vault.root('POST', 'auth/token/roles/leasehold-task', { token_period: '60s' });
  });

  test('a token role that promises too much is refused, and says what to correct', async () => {
    for (const [change, said] of [
      [{ orphan: false }, /orphan=true/],
      [{ token_period: '24h' }, /token_period to 60 s/],
    ] as const) {
      const role = { allowed_policies: ['leasehold-task'], orphan: true, renewable: true, token_period: '60s' };
      await at.vault.root('POST', 'auth/token/roles/leasehold-task', { ...role, ...change });
      const taskId = await openVaultTask(at.estate);
      const refusal = await refusalOf(agent.issueCredential({ taskId, ...ledger }));
      expect(refusal.reason).toBe('PROVIDER_UNAVAILABLE');
      expect(refusal.message).toMatch(said);
      expect(await tokensOf(taskId)).toEqual([]);
      await orchestrator.closeTask({ taskId, wait: true });
    }
  });

  test('neither tokens nor secrets are in the log or in any table', async () => {
    const secrets = ['kv-canary-1', at.vault.rootToken, 'hvs.'];
    const log = broker.log.join('\n');
    for (const secret of secrets) expect(log.includes(secret)).toBe(false);
    for (const table of ['leases', 'task_tokens', 'audit_events', 'tasks', 'revocations']) {
      for (const secret of secrets) {
        const found = await brokerRows(
          at.estate,
          `SELECT 1 FROM ${table} r WHERE position($1 in r::text) > 0 LIMIT 1`,
          [secret],
        );
        expect(found, `${secret} in ${table}`).toEqual([]);
      }
    }
  });
});
