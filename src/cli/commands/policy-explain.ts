import { Option, type Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, type RemoteOptions } from '../define.ts';
import {
  collect,
  contextEntry,
  count,
  identifier,
  instant,
  labelEntry,
  requestArgument,
  toolAndTier,
  type ToolAndTier,
} from '../values.ts';

interface Options extends RemoteOptions {
  task?: string;
  agent?: string;
  tool?: ToolAndTier;
  context?: [string, string][];
  label?: [string, string][];
  workload?: string;
  at?: number;
  renewals?: number;
  revision?: string;
  argument?: [string, string | number | boolean][];
  boundTo?: 'dpop' | 'mtls';
}

export function policyExplain(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'explain',
    summary: 'Say why a decision came out as it did, or how one would',
    description:
      'For a decision (dec_…, in the audit trail and in refusals) or a lease (lse_…): every rule considered, what each ' +
      'condition saw, and what won. With --tool instead: the same for a request that nobody made. Agents and ' +
      'orchestrators are told effect, rule and reason of decisions about their own tasks.',
    examples: [
      ['leasehold policy explain lse_0198f1c2a4b57d3e8f60718293a4b5c6', 'why this credential was issued'],
      [
        'leasehold policy explain --task tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool warehouse:write',
        'what this task would be told now',
      ],
      [
        'leasehold policy explain --agent analyst --tool warehouse:write --context change_ticket=CHG-7',
        'without a task',
      ],
      [
        'leasehold policy explain --agent support --tool payments:write --argument order=ORD-1 --argument amount=80',
        'with what the request declares',
      ],
    ],
  });
  command
    .argument('[decision]', 'decision or lease identifier')
    .option('--task <id>', 'task of the request', identifier('tsk'))
    .option('--agent <name>', 'agent of the request, without a task')
    .option('--tool <tool:tier>', 'tool and tier of the request', toolAndTier)
    .option(
      '--context <key=value>',
      'context of the request, without a task; repeat it for more',
      collect(contextEntry),
    )
    .option('--label <key=value>', 'label of the request, without a task; repeat it for more', collect(labelEntry))
    .option(
      '--argument <name=value>',
      'an argument that it would declare; repeat it for more',
      collect(requestArgument),
    )
    .addOption(new Option('--bound-to <what>', 'what its credential would be bound to').choices(['dpop', 'mtls']))
    .option('--workload <id>', 'workload that would ask')
    .option('--at <time>', 'when it would ask', instant)
    .option('--renewals <number>', 'it would be this renewal of its credential', count(1_000_000))
    .option('--revision <digest>', 'ask this revision instead of the running one')
    .action(async (decision: string | undefined, options: Options) => {
      if ((decision === undefined) === (options.tool === undefined)) {
        throw new CliError('usage', 'name a decision or lease, or describe a request with --tool', { reason: 'USAGE' });
      }
      const remote = await import('../remote.ts');
      const { tool } = options;
      const answer = await remote.connect(options).call(remote.PolicyService.method.explainDecision, {
        subject:
          tool === undefined
            ? { case: 'decisionId', value: decision! }
            : {
                case: 'hypothetical',
                value: {
                  taskId: options.task ?? '',
                  agent: options.agent ?? '',
                  context: Object.fromEntries(options.context ?? []),
                  labels: Object.fromEntries(options.label ?? []),
                  workload: options.workload ?? '',
                  access: { tool: tool.tool, tier: remote.tierValue[tool.tier] },
                  revision: options.revision ?? '',
                  arguments: Object.fromEntries(options.argument ?? []),
                  senderConstraint: remote.constraintValue[options.boundTo ?? 'none'],
                  ...(options.at === undefined ? {} : { time: remote.timestampFromMs(options.at) }),
                  ...(options.renewals === undefined ? {} : { renewals: options.renewals - 1 }),
                },
              },
      });
      if (options.json === true) {
        remote.jsonLine(remote.ExplainDecisionResponseSchema, answer);
        return;
      }
      remote.fields([
        ['decision', answer.decisionId],
        ['effect', { text: remote.effectName(answer.effect), tone: remote.effectTone(answer.effect) }],
        ['rule', answer.policyRule],
        ['reason', answer.reason],
        ['life', answer.ttl === undefined ? '' : remote.span(remote.durationMs(answer.ttl))],
        ['decided', answer.decideTime === undefined ? '' : remote.iso(answer.decideTime)],
        ['revision', answer.policyRevision],
        ['obligations', empty(answer.obligations) ? '' : JSON.stringify(answer.obligations)],
        [
          'decided again',
          answer.reproduced === undefined
            ? ''
            : answer.reproduced
              ? { text: 'gives the same', tone: 'good' as const }
              : { text: 'gives something else: the record or the configuration was changed', tone: 'bad' as const },
        ],
      ]);
      if (answer.rules.length === 0) return;
      remote.line();
      remote.line(remote.toned('Rules considered:', 'bold'));
      for (const rule of answer.rules) {
        const state = rule.decided ? 'decided' : rule.matched ? 'applies' : 'does not apply';
        const tone = rule.decided ? ('good' as const) : rule.matched ? undefined : ('dim' as const);
        remote.line(remote.toned(`  ${remote.printable(rule.rule)} (${rule.effect}): ${state}`, tone));
        if (rule.condition !== '')
          remote.line(`      when ${remote.printable(rule.condition.replaceAll(/\s+/g, ' '))}`);
        if (rule.note !== '') remote.line(`      ${remote.printable(rule.note)}`);
        for (const { expression, value } of rule.saw) {
          remote.line(remote.toned(`      ${remote.printable(`${expression} = ${value}`)}`, 'dim'));
        }
      }
    });
}

function empty(value: object | undefined): boolean {
  return value === undefined || Object.keys(value).length === 0;
}
