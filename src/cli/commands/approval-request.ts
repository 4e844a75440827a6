import { randomUUID } from 'node:crypto';
import { InvalidArgumentError, type Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { contextEntry, identifier, labelEntry, requestArgument, toolAndTier, type ToolAndTier } from '../values.ts';

interface Action extends ToolAndTier {
  arguments: Record<string, string | number | boolean>;
  agent: string;
  context: Record<string, string>;
  labels: Record<string, string>;
}

interface Options extends RemoteOptions {
  tool: Action[];
  justification?: string;
  requestId?: string;
}

export function approvalRequest(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'request',
    summary: 'Ask for all that a task will need at once',
    description:
      'Asks people one time for everything, before the agent needs it. Says of each tool and tier whether it needs people at ' +
      'all. An approval is for the exact arguments of a use: give them after the --tool that they belong to. With --agent ' +
      'after it, the use is that of tasks directly below, which need not be open yet: the task holds the approval for them.',
    examples: [
      [
        'leasehold approval request tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool shop:write --tool repo:execute --justification "tonight"',
        'two things, one message to people',
      ],
      [
        'leasehold approval request tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool shop:write --argument amount=40 --tool shop:write --argument amount=90',
        'two uses of one tool, each with its arguments',
      ],
      [
        'leasehold approval request tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool shop:write --argument amount=40 --agent clerk',
        'a use that a task below it will make, opened for agent clerk',
      ],
    ],
  });
  const actions: Action[] = [];
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .requiredOption('--tool <tool:tier>', 'tool and tier; repeat it for more', (text) => {
      actions.push({ ...toolAndTier(text), arguments: {}, agent: '', context: {}, labels: {} });
      return actions;
    })
    .option('--argument <name=value>', 'an argument of the --tool before it; repeat it for more', (text) => {
      const [name, value] = requestArgument(text);
      const action = last(actions);
      if (Object.hasOwn(action.arguments, name)) throw new InvalidArgumentError(`${name} is given twice.`);
      action.arguments[name] = value;
    })
    .option(
      '--agent <name>',
      'agent of the tasks directly below that will make the use of the --tool before it',
      (text) => {
        const action = last(actions);
        if (action.agent !== '') throw new InvalidArgumentError('It is given twice.');
        action.agent = text;
      },
    )
    .option('--context <key=value>', 'with --agent: a fact for policy that those tasks are opened with', (text) => {
      const [key, value] = contextEntry(text);
      const { context } = last(actions);
      if (Object.hasOwn(context, key)) throw new InvalidArgumentError(`${key} is given twice.`);
      context[key] = value;
    })
    .option('--label <key=value>', 'with --agent: a label that those tasks are opened with', (text) => {
      const [key, value] = labelEntry(text);
      const { labels } = last(actions);
      if (Object.hasOwn(labels, key)) throw new InvalidArgumentError(`${key} is given twice.`);
      labels[key] = value;
    })
    .option('--justification <text>', 'what they are for; approvers see it');
  withRequestId(command).action(async (taskId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.ApprovalService.method.requestApprovals, {
      requestId: options.requestId ?? randomUUID(),
      taskId,
      actions: options.tool.map(({ tool, tier, arguments: args, agent, context, labels }) => ({
        tool,
        tier: remote.tierValue[tier],
        arguments: args,
        agent,
        context,
        labels,
      })),
      justification: options.justification ?? '',
    });
    if (options.json === true) {
      remote.jsonLine(remote.RequestApprovalsResponseSchema, answer);
      return;
    }
    remote.table(
      ['TOOL', 'TIER', 'EFFECT', 'APPROVAL', 'WHY'],
      answer.results.map(({ effect, approval, reason }, index) => [
        options.tool[index]?.tool ?? '',
        options.tool[index]?.tier ?? '',
        { text: remote.effectName(effect), tone: remote.effectTone(effect) },
        approval?.approvalId ?? '-',
        reason,
      ]),
    );
  });
}

function last(actions: readonly Action[]): Action {
  const action = actions.at(-1);
  if (action === undefined) throw new InvalidArgumentError('It comes after the --tool that it belongs to.');
  return action;
}
