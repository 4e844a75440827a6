import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import type { Lock, LockReach } from '../../gen/leasehold/v1/lock_service_pb.js';
import { CliError } from '../cli-error.ts';
import { defineRemote, type RemoteOptions } from '../define.ts';
import type { Alive } from '../evidence.ts';
import { count, duration, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  reason: string;
  evidence?: string;
  wait: number;
  entries: number;
}

const pollMs = 300;
const pageSize = 500;
const mostShown = 20;

export function contain(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'contain',
    summary: 'Stop a task and everything below it: lock, settle, keep the evidence, tell what happened',
    description:
      'The one command for an incident. Locks the task and everything below it, closes and settles what is open, writes all ' +
      'that is recorded about it to a file whose digest the audit has, prints the timeline, and says plainly what is still ' +
      'alive. Running it again is harmless: the lock is found, and another file of evidence is written. Exits with 12 when ' +
      'some credential may still work.',
    examples: [
      ['leasehold contain tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --reason "INC-7: reads what it should not"', 'now'],
      [
        'leasehold contain tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --reason INC-7 --evidence /secure/inc-7.ndjson --json',
        'from a runbook',
      ],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--reason <text>', 'why; recorded')
    .option('--evidence <file>', 'new file for the evidence (default: evidence-<task>-<time>.ndjson in this folder)')
    .option('--wait <duration>', 'longest wait for credentials to be settled', duration, 60_000)
    .option('--entries <number>', 'most entries of the timeline to print', count(100_000), 200)
    .action(async (taskId: string, options: Options) => {
      const remote = await import('../remote.ts');
      const { writeEvidence } = await import('../evidence.ts');
      const { progressBar } = await import('../progress.ts');
      const client = remote.connect(options);
      const human = options.json !== true;
      const say = (text: string) => void (human && process.stderr.write(`${text}\n`));

      const lock = await locked();
      say(`locked    ${lock.lockId}: nothing is issued for the task or below it any more, by any replica`);
      const reach = await settled(lock);
      say(
        reach.openTasks + reach.unsettledLeases === 0
          ? 'settled   every task below is closed, every credential has its outcome'
          : `settling  ${reach.openTasks} tasks open, ${reach.unsettledLeases} credentials without an outcome; the broker goes on`,
      );
      const bar = progressBar('records');
      const path = options.evidence ?? `evidence-${taskId}-${new Date().toISOString().replace(/[-:.]/g, '')}.ndjson`;
      const evidence = await writeEvidence(
        path,
        client.stream(remote.AuditService.method.exportEvidence, { taskId }, false),
        Date.now(),
        (records) => bar.show(records, 0),
      ).finally(() => bar.end());
      const { digest, tasks, leases, approvals, calls, events, truncated } = evidence.summary;
      say(
        `evidence  ${path}: ${tasks} tasks, ${leases} leases, ${approvals} approvals, ${calls} calls, ${events} events${truncated ? ' (NOT ALL: more than one export holds)' : ''}`,
      );
      say(`          ${digest}, recorded in the audit trail`);

      if (human) await timeline();
      const good = evidence.alive.length === 0 && reach.openTasks + reach.unsettledLeases === 0;
      if (human) tellAlive(evidence.alive, good);
      else {
        remote.line(
          JSON.stringify({
            lock_id: lock.lockId,
            contained: true,
            open_tasks: reach.openTasks,
            unsettled_leases: reach.unsettledLeases,
            evidence: { file: path, digest, tasks, leases, approvals, calls, events, truncated },
            still_alive: evidence.alive.map(({ leaseId, taskId: of, tool, tier, because, until }) => ({
              lease_id: leaseId,
              task_id: of,
              tool,
              tier,
              because,
              until,
            })),
          }),
        );
      }
      if (!good) {
        throw new CliError(
          'unsettled',
          `the task is locked, but ${evidence.alive.length} of its credentials may still work; follow leasehold lock get ${lock.lockId}`,
          { reason: 'NOT_SETTLED' },
        );
      }

      /** The lock that is there already, or a new one. */
      async function locked(): Promise<Lock> {
        const { locks } = await client.call(remote.LockService.method.listLocks, { taskId, pageSize: 50 });
        const known = locks.find(({ settle }) => settle);
        if (known !== undefined) return known;
        const { lock: placed } = await client.call(remote.LockService.method.createLock, {
          requestId: randomUUID(),
          scope: { scope: { case: 'taskId', value: taskId } },
          reason: options.reason,
          settle: true,
        });
        return remote.required(placed);
      }

      async function settled({ lockId }: Lock): Promise<LockReach> {
        const until = Date.now() + options.wait;
        const waiting = progressBar('credentials settled');
        let most = 0;
        try {
          for (;;) {
            const answer = await client.call(remote.LockService.method.getLock, { lockId });
            const now = remote.required(answer.reach);
            most = Math.max(most, now.unsettledLeases);
            if (now.openTasks + now.unsettledLeases === 0 || Date.now() >= until) return now;
            waiting.show(most - now.unsettledLeases, most);
            await sleep(pollMs);
          }
        } finally {
          waiting.end();
        }
      }

      async function timeline(): Promise<void> {
        const { timelineHead, timelineLine } = await import('../timeline-view.ts');
        remote.line();
        timelineHead(true);
        let told = 0;
        let pageToken = '';
        do {
          const answer = await client.call(remote.AuditService.method.listTimeline, {
            taskId,
            tree: true,
            pageSize,
            pageToken,
          });
          for (const entry of answer.entries.slice(0, options.entries - told)) timelineLine(entry, true);
          told += answer.entries.length;
          pageToken = told < options.entries ? answer.nextPageToken : '';
          if (told > options.entries || (answer.nextPageToken !== '' && pageToken === '')) {
            remote.line(`more: leasehold task timeline ${taskId} --tree`);
          }
        } while (pageToken !== '');
      }

      function tellAlive(alive: readonly Alive[], nothing: boolean): void {
        remote.line();
        if (nothing) {
          remote.line(remote.toned('nothing is alive: every credential of the task and below it is dead', 'good'));
          return;
        }
        if (alive.length === 0) return;
        remote.line(remote.toned(`STILL ALIVE: ${alive.length} credentials`, 'bad'));
        remote.table(
          ['LEASE', 'TASK', 'USE', 'WHY', 'AT THE LATEST UNTIL'],
          alive
            .slice(0, mostShown)
            .map(({ leaseId, taskId: of, tool, tier, because, until }) => [
              leaseId,
              of,
              `${tool}:${tier}`,
              because,
              new Date(until).toISOString(),
            ]),
        );
        if (alive.length > mostShown) remote.line(`and ${alive.length - mostShown} more: see the evidence`);
      }
    });
}
