import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { brokerRows, callers, eventually, loginOf, retrying, seeded } from '../faults/support.ts';
import { startProcess, type BrokerProcess } from '../support/broker.ts';
import { describeVault } from '../support/vault.ts';
import { createVaultEstate, ledger, openVaultTask, own } from './estate.ts';

/**
 * The whole of it: LEASEHOLD_KILL_TASKS=1000 LEASEHOLD_KILLS=50, some minutes. LEASEHOLD_KILL_SEED gives other tasks and moments, and the same
 * again; LEASEHOLD_KILL_LOGS names a folder for Vault's log and its audit log, secrets included.
 */
const setting = (name: string, usual: number) => Number(process.env[name] ?? usual);
const tasks = setting('LEASEHOLD_KILL_TASKS', 40);
const kills = setting('LEASEHOLD_KILLS', 4);
const seed = setting('LEASEHOLD_KILL_SEED', 20_261_124);
const atOnce = 24;
const logs = process.env['LEASEHOLD_KILL_LOGS'];
const settleLimit = 60_000 + tasks * 500;
const limit = 60_000 + kills * 10_000 + tasks * 1_000 + settleLimit;
/** A long run says where it is. */
const told = process.env['LEASEHOLD_KILL_TASKS'] !== undefined;
/** What a client that means it does: whatever a dead or a starting broker answers, the same request again. */
const passing = ['', 'IN_PROGRESS', 'STORAGE_UNAVAILABLE', 'PROVIDER_UNAVAILABLE', 'RATE_LIMITED', 'SHUTTING_DOWN'];

describeVault('a broker killed again and again at random points', () => {
  test(
    `${tasks} tasks, ${kills} kills: no login is left, every lease has an outcome, nothing was handed out twice`,
    async () => {
      const at = await createVaultEstate('vkills', {
        server: { issueTimeout: '2s' },
        // Now and then a kill cuts off the very COMMIT that makes a login, and only its name tells of it.
        tier: 'sweep: creds/sweep',
        config: { server: { limits: { callsPerSecond: 10_000, burst: 20_000 } } },
      });
      if (logs !== undefined) {
        await mkdir(logs, { recursive: true });
        const options = { file_path: path.resolve(logs, 'audit.log'), log_raw: 'true' };
        await at.vault.root('POST', 'sys/audit/file', { type: 'file', options });
      }
      let broker: BrokerProcess | undefined = await startProcess(at.estate);
      const random = seeded(seed);
      const handedOut: string[] = [];
      let next = 0;
      let ended = false;
      let killed = 0;

      const oneTask = async () => {
        // Drawn before the first wait, so that the order of answers does not change what is drawn.
        const [count, exclusive, giveBack] = [1 + Math.floor(random() * 3), random() < 0.5, random() < 0.3];
        const { agent, orchestrator } = callers(at.estate);
        // On a loaded machine there may be many kills before one broker gets round to it.
        const again = <T>(call: () => Promise<T>) => retrying(call, passing, limit);
        const opening = { requestId: crypto.randomUUID() };
        const taskId = await again(() => openVaultTask(at.estate, opening));
        for (let n = 0; n < count; n++) {
          const request = { requestId: crypto.randomUUID(), taskId, ...(exclusive ? own : ledger) };
          const { credential } = await again(() => agent.issueCredential(request));
          handedOut.push(loginOf(credential).username);
          if (n === 0 && giveBack) {
            await again(() =>
              agent.returnCredential({ requestId: crypto.randomUUID(), leaseId: credential!.lease!.leaseId }),
            );
          }
        }
        await again(() => orchestrator.closeTask({ taskId }));
      };
      const worker = async () => {
        while (next < tasks && !ended) {
          next += 1;
          await oneTask();
        }
      };
      const killer = async () => {
        const moments = seeded(seed + 1);
        while (killed < kills && !ended) {
          await sleep(50 + moments() * 1_500);
          await broker!.kill();
          killed += 1;
          if (told) console.log(`kill ${killed} of ${kills}, ${next} of ${tasks} tasks begun`);
          broker = undefined;
          broker = await startProcess(at.estate);
        }
      };
      try {
        await Promise.all([killer(), ...Array.from({ length: atOnce }, worker)]);
        if (told) console.log(`${killed} kills over ${next} tasks, ${handedOut.length} logins handed out`);

        await eventually(async () => {
          const open = await brokerRows(at.estate, `SELECT count(*)::int AS n FROM leases WHERE state <> 'settled'`);
          expect(open).toEqual([{ n: 0 }]);
          const left = await brokerRows(at.estate, 'SELECT count(*)::int AS n FROM tasks WHERE settled_at IS NULL');
          expect(left).toEqual([{ n: 0 }]);
        }, settleLimit);
        // Vault has no lease left, and the target, which alone knows, no login.
        const names = async (mount: string) => {
          const list = `sys/leases/lookup/${mount}/creds/read`;
          const listed = await at.vault.request({ method: 'LIST', path: list, token: at.vault.rootToken });
          return (listed.json['data'] as { keys?: string[] } | undefined)?.keys ?? [];
        };
        await eventually(
          async () => expect([...(await names('database')), ...(await names('own'))]).toEqual([]),
          30_000,
        );
        expect(await at.madeLogins()).toEqual([]);
        expect(new Set(handedOut).size).toBe(handedOut.length);
        const [leases] = await brokerRows(
          at.estate,
          `SELECT count(*)::int AS all, count(*) FILTER (WHERE outcome IS NULL)::int AS open,
            count(*) FILTER (WHERE outcome IN ('bounded', 'irrevocable'))::int AS unsure FROM leases`,
        );
        expect(leases).toMatchObject({ open: 0, unsure: 0 });
        expect(leases!['all']).toBeGreaterThanOrEqual(handedOut.length);
        if (told) {
          const sql =
            'SELECT outcome, settle_cause AS cause, count(*)::int AS leases FROM leases GROUP BY 1, 2 ORDER BY 1, 2';
          console.table(await brokerRows(at.estate, sql));
        }
        // The tokens of closed tasks are gone as well, at the latest with their next heartbeat.
        await brokerRows(at.estate, 'UPDATE task_tokens SET due_at = now()');
        await eventually(async () => expect(await brokerRows(at.estate, 'SELECT * FROM task_tokens')).toEqual([]));
      } finally {
        ended = true;
        await broker?.kill();
        if (logs !== undefined) await writeFile(path.join(logs, 'vault.log'), at.vault.log());
        await at.remove();
      }
    },
    limit,
  );
});
