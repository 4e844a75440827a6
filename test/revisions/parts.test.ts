import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createDatabasePolicy } from '../../src/database-policy.ts';
import { createReevaluator } from '../../src/domain/reevaluation.ts';
import { diffDocuments } from '../../src/domain/revision-diff.ts';
import type { Activation } from '../../src/domain/revisions.ts';
import type { PolicyRevision } from '../../src/domain/policy.ts';
import { compilePolicy } from '../../src/policy/compile.ts';
import { gitCommit } from '../../src/policy/git-checkout.ts';
import type { Storage } from '../../src/storage/storage.ts';
import {
  createBrokerDatabase,
  insertedTask,
  leaseOf,
  newId,
  openTestStorage,
  rows,
  taskOf,
  writeOf,
} from '../support/storage.ts';
import type { BrokerDatabase } from '../support/storage.ts';

describe('the commit of a checkout', () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'leasehold-git-'));
    await mkdir(path.join(dir, 'repo', 'policies', 'team'), { recursive: true });
    await writeFile(path.join(dir, 'repo', 'policies', 'a.yaml'), 'a');
    git('init', '-q', '-b', 'main');
    git('add', '.');
    git('-c', 'user.name=t', '-c', 'user.email=t@leasehold.test', 'commit', '-q', '-m', 'first');
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  function git(...args: string[]): string {
    // Alone with this repository, whatever the machine's own settings are.
    const env = { PATH: process.env['PATH'] ?? '', HOME: dir, GIT_CONFIG_NOSYSTEM: '1' };
    return execFileSync('git', args, { cwd: path.join(dir, 'repo'), env, encoding: 'utf8' }).trim();
  }

  test('is what git says, from a folder within, from packed references, detached and in a worktree', async () => {
    const within = path.join(dir, 'repo', 'policies', 'team');
    const commit = git('rev-parse', 'HEAD');
    expect(await gitCommit(within)).toBe(commit);
    git('pack-refs', '--all');
    expect(await gitCommit(within)).toBe(commit);
    git('worktree', 'add', '-q', path.join(dir, 'tree'), '-b', 'other');
    expect(await gitCommit(path.join(dir, 'tree', 'policies'))).toBe(commit);
    git('checkout', '-q', '--detach');
    expect(await gitCommit(within)).toBe(commit);
  });

  test('is none outside a checkout, and none of one that cannot be read', async () => {
    expect(await gitCommit(dir)).toBeUndefined();
    const broken = path.join(dir, 'broken');
    await mkdir(path.join(broken, '.git'), { recursive: true });
    await writeFile(path.join(broken, '.git', 'HEAD'), 'ref: refs/../../../../etc/passwd\n');
    expect(await gitCommit(broken)).toBeUndefined();
    expect(await gitCommit(path.join(dir, 'nowhere'))).toBeUndefined();
  });
});

describe('a difference', () => {
  const rule = (name: string, more: object = {}) => ({
    name,
    agents: ['a'],
    tools: ['t'],
    tiers: ['read'],
    effect: 'allow',
    ...more,
  });
  const policy = (...rules: object[]) => ({ kind: 'Policy', metadata: { name: 'p' }, spec: { rules } });

  test('is none between documents and themselves, in whatever order their rules are', () => {
    expect(diffDocuments([policy(rule('x'), rule('y'))], [policy(rule('y'), rule('x'))])).toEqual([]);
  });

  test('names each field that was there only before, only after, or in both with another value', () => {
    const before = [policy(rule('x', { when: 'a', obligations: { ttl: '1m' } }))];
    const after = [policy(rule('x', { reason: 'r', obligations: { ttl: '2m' } }))];
    expect(diffDocuments(before, after)).toEqual([
      {
        kind: 'Policy',
        name: 'p',
        rule: 'x',
        change: 'changed',
        fields: [
          { path: 'obligations.ttl', before: '"1m"', after: '"2m"' },
          { path: 'reason', before: '', after: '"r"' },
          { path: 'when', before: '"a"', after: '' },
        ],
      },
    ]);
  });
});

describe('a replica that follows the database', () => {
  const activation = (activationId: string, digest: string): Activation => ({
    activationId,
    digest,
    activatedAt: 0,
    actor: 'x',
    source: 'api',
    message: '',
    reevaluation: undefined,
  });

  test('denies everything under a revision that it cannot compile, and goes on with the next one that it can', async () => {
    let active = activation('1', 'sha256:good');
    const errors: string[] = [];
    const good = compilePolicy([]);
    const policy = createDatabasePolicy({
      store: { active: () => Promise.resolve(active), documents: (digest) => Promise.resolve(digest) },
      tenant: 'default',
      compile: (documents) => {
        if (documents === 'sha256:bad') throw new Error('no such kind');
        return { ...good, digest: documents, decide: () => ({ effect: 'allow', rule: 'r', reason: '', ttl: 1 }) };
      },
      empty: good,
      onRunning: () => undefined,
      onError: (digest, message) => errors.push(`${digest} ${message}`),
    });
    expect(policy.status()).toMatchObject({ ready: false });
    await policy.refresh();
    const input = {} as Parameters<PolicyRevision['decide']>[0];
    expect(policy.current().decide(input).effect).toBe('allow');
    active = activation('2', 'sha256:bad');
    await policy.refresh();
    expect(policy.current()).toMatchObject({ digest: 'sha256:bad' });
    expect(policy.current().decide(input).effect).toBe('deny');
    expect(policy.status().ready).toBe(false);
    expect(errors).toEqual(['sha256:bad no such kind']);
    active = activation('3', 'sha256:good');
    await policy.refresh();
    expect(policy.current().decide(input).effect).toBe('allow');
    expect(policy.status()).toEqual({ ready: true, detail: 'sha256:good' });
  });
});

describe('deciding open leases again', () => {
  let database: BrokerDatabase;
  let storage: Storage;
  beforeAll(async () => {
    database = await createBrokerDatabase('reevaluate');
    storage = await openTestStorage(database);
  });
  afterAll(async () => {
    await storage.close();
    await database.drop();
  });

  test('takes 1,200 in bounded batches, by two replicas at once, each lease once', async () => {
    const wanted = taskOf();
    const task = insertedTask(await storage.tasks.insert(wanted, []));
    const leases = Array.from({ length: 1_200 }, (_, index) =>
      leaseOf(task, { agent: index % 2 === 0 ? 'odd' : 'even' }),
    );
    await Promise.all(leases.map((lease) => storage.writer.insert(writeOf(task, lease))));

    const revision = { ...compilePolicy([]), digest: `sha256:${'0'.repeat(64)}` };
    await storage.policies.recordRevision('default', {
      digest: revision.digest,
      documents: '[]',
      createdAt: Date.now(),
      creator: 'x',
      source: 'api',
      message: '',
    });
    const { digest } = revision;
    await storage.policies.activate(
      {
        tenant: 'default',
        digest,
        actor: 'x',
        source: 'api',
        message: '',
        requestId: undefined,
        reevaluate: true,
        expected: undefined,
      },
      { tenant: 'default', kind: 'policy.activated', at: Date.now(), actor: 'x', taskId: '', detail: {} },
    );
    const taken: string[] = [];
    const replica = () =>
      createReevaluator({
        clock: { now: Date.now },
        newId,
        policy: { tenants: ['default'], current: () => revision, lastError: () => undefined },
        store: storage.reevaluation,
        facts: storage.facts,
        tenant: 'default',
        kickSettler: () => undefined,
        emit: (name, fields) => {
          if (name === 'lease.taken_away') taken.push((fields as { leaseId: string }).leaseId);
        },
      });
    const [a, b] = [replica(), replica()];
    while ((await Promise.all([a.tick(), b.tick()])).some(Boolean));
    expect(taken).toHaveLength(1_200);
    expect(new Set(taken).size).toBe(1_200);
    const state = await rows(database.url, `SELECT state, settle_cause, count(*)::int AS n FROM leases GROUP BY 1, 2`);
    expect(state).toEqual([{ state: 'settling', settle_cause: 'policy', n: 1_200 }]);
    const [work] = await rows(
      database.url,
      'SELECT decided::int, ended::int, pass, finished_at FROM policy_reevaluations',
    );
    expect(work).toEqual({ decided: 1_200, ended: 1_200, pass: 1, finished_at: null });
    const [events] = await rows(
      database.url,
      `SELECT count(*)::int AS n FROM audit_events WHERE kind = 'decision.made'`,
    );
    expect(events).toEqual({ n: 1_200 });
  });
});
