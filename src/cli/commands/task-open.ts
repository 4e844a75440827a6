import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import {
  collect,
  contextEntry,
  duration,
  identifier,
  instant,
  labelEntry,
  toolAndTier,
  uniqueEntries,
  type ToolAndTier,
} from '../values.ts';
import { CliError } from '../cli-error.ts';

interface Options extends RemoteOptions {
  agent: string;
  agentWorkload?: string;
  tool: ToolAndTier[];
  context?: [string, string][];
  label?: [string, string][];
  ttl?: number;
  deadline?: number;
  heartbeat?: number;
  parent?: string;
  requestId?: string;
}

export function taskOpen(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'open <intent>',
    summary: 'Open a task and show what it may and may not do',
    description:
      'Opens a task and shows its plan: per tool and tier whether a credential would be issued, why, and for how long. The ' +
      'intent says what the work is for; it is recorded and never decides.',
    examples: [
      [
        'leasehold task open "Reconcile March invoices" --agent reconciler --tool warehouse:read --ttl 30m',
        'half an hour of reading one tool',
      ],
      [
        'leasehold task open "Fix build" --agent builder --tool repo:read --tool repo:write --context ticket=OPS-7 --json',
        'two tiers, a fact for policy, for a script',
      ],
      [
        'leasehold task open "Nightly load" --agent loader --tool warehouse:write --label env=prod --label team=data',
        'with labels, to find it by and for rules on task.labels',
      ],
      [
        'leasehold task open "Count rows" --parent tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --agent counter --tool warehouse:read',
        'by an agent that hands on a part of its own task',
      ],
    ],
  });
  command
    .requiredOption('--agent <name>', 'registered agent that will do the work')
    .requiredOption('--tool <tool:tier>', 'tool and tier wanted; repeat it for more', collect(toolAndTier))
    .option('--agent-workload <id>', 'the one workload (SPIFFE ID) that may act as the agent')
    .option(
      '--parent <task>',
      'task that hands this work on: what is opened gets at most what that one has',
      identifier('tsk'),
    )
    .option('--context <key=value>', 'a fact for policy; repeat it for more', collect(contextEntry))
    .option(
      '--label <key=value>',
      'what the task belongs to, for policy and lists; repeat it for more',
      collect(labelEntry),
    )
    .option('--ttl <duration>', 'life of the task from now', duration)
    .option('--deadline <time>', 'end of the task, instead of --ttl', instant)
    .option('--heartbeat <duration>', 'close the task when its opener is silent for longer than this', duration);
  withRequestId(command).action(async (intent: string, options: Options) => {
    if (options.ttl !== undefined && options.deadline !== undefined) {
      throw new CliError('usage', '--ttl and --deadline both set the end of the task; give one of them', {
        reason: 'USAGE',
      });
    }
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.TaskService.method.openTask, {
      requestId: options.requestId ?? randomUUID(),
      intent,
      parentTaskId: options.parent ?? '',
      agent: options.agent,
      agentWorkload: options.agentWorkload ?? '',
      tools: options.tool.map(({ tool, tier }) => ({ tool, tier: remote.tierValue[tier] })),
      context: uniqueEntries('--context', options.context),
      labels: uniqueEntries('--label', options.label),
      ...(options.ttl === undefined ? {} : { ttl: remote.durationFromMs(options.ttl) }),
      ...(options.deadline === undefined ? {} : { deadline: remote.timestampFromMs(options.deadline) }),
      ...(options.heartbeat === undefined ? {} : { heartbeatInterval: remote.durationFromMs(options.heartbeat) }),
    });
    if (options.json === true) {
      remote.jsonLine(remote.OpenTaskResponseSchema, answer);
      return;
    }
    remote.showTask(answer.task);
    remote.line();
    remote.showPlan(answer.plan);
  });
}
