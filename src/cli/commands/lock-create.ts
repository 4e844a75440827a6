import { randomUUID } from 'node:crypto';
import { InvalidArgumentError, type Command } from 'commander';
import type { Tier } from '../../domain/model.ts';
import { CliError } from '../cli-error.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { duration, identifier, toolAndTier } from '../values.ts';

interface Options extends RemoteOptions {
  agent?: string;
  workload?: string;
  tool?: { tool: string; tier: Tier | undefined };
  task?: string;
  tenant?: string;
  all?: boolean;
  reason: string;
  expires?: number;
  settle?: boolean;
  requestId?: string;
}

export function lockCreate(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'create',
    summary: 'Lock an agent, a workload, a tool, a task tree, a tenant, or everything',
    description:
      'Locks. When it returns the lock is in force on every replica: nothing is issued, renewed or opened under it. What was ' +
      'issued before lives on, unless --settle closes it too. For one task that misbehaves, leasehold contain does it all.',
    examples: [
      [
        'leasehold lock create --agent analyst --reason "INC-7: reads what it should not" --settle',
        'and end what is open',
      ],
      [
        'leasehold lock create --tool warehouse:write --reason "INC-8: wrong totals" --expires 4h',
        'one tier, for a while',
      ],
      [
        'leasehold lock create --workload "spiffe://prod.example/agent/*" --reason INC-9',
        'every workload below a path',
      ],
      ['leasehold lock create --all --reason "INC-1: keys may be out"', 'everything, in every tenant'],
    ],
  });
  command
    .option('--agent <agent>', 'registered agent: its tasks, and those below them')
    .option(
      '--workload <workload>',
      'workload, or a pattern that ends in /*: as the agent, and as the opener of a task',
    )
    .option('--tool <tool[:tier]>', 'registered tool, or one tier of it', toolOrTier)
    .option('--task <task>', 'task and everything below it', identifier('tsk'))
    .option('--tenant <tenant>', 'everything in one tenant')
    .option('--all', 'everything in every tenant')
    .requiredOption('--reason <text>', 'why; for operators and auditors')
    .option('--expires <duration>', 'end by itself after this; without it, only lifting ends it', duration)
    .option('--settle', 'close and settle what is open under it');
  withRequestId(command).action(async (options: Options) => {
    const remote = await import('../remote.ts');
    const scopes = [
      ...(options.agent === undefined ? [] : [{ case: 'agent', value: options.agent } as const]),
      ...(options.workload === undefined ? [] : [{ case: 'workload', value: options.workload } as const]),
      ...(options.tool === undefined
        ? []
        : [
            {
              case: 'tool',
              value: {
                tool: options.tool.tool,
                tier: options.tool.tier === undefined ? remote.Tier.UNSPECIFIED : remote.tierValue[options.tool.tier],
              },
            } as const,
          ]),
      ...(options.task === undefined ? [] : [{ case: 'taskId', value: options.task } as const]),
      ...(options.tenant === undefined ? [] : [{ case: 'tenant', value: options.tenant } as const]),
      ...(options.all === true ? [{ case: 'all', value: true } as const] : []),
    ];
    const [scope] = scopes;
    if (scope === undefined || scopes.length > 1) {
      throw new CliError('usage', 'name exactly one of --agent, --workload, --tool, --task, --tenant and --all', {
        reason: 'USAGE',
      });
    }
    const answer = await remote.connect(options).call(remote.LockService.method.createLock, {
      requestId: options.requestId ?? randomUUID(),
      scope: { scope },
      reason: options.reason,
      ...(options.expires === undefined ? {} : { expireTime: remote.timestampFromMs(Date.now() + options.expires) }),
      settle: options.settle ?? false,
    });
    if (options.json === true) remote.jsonLine(remote.CreateLockResponseSchema, answer);
    else remote.showLock(answer.lock);
  });
}

function toolOrTier(text: string): { tool: string; tier: Tier | undefined } {
  if (text.includes(':')) return toolAndTier(text);
  if (text === '') throw new InvalidArgumentError('It is TOOL or TOOL:TIER, for example warehouse:write.');
  return { tool: text, tier: undefined };
}
